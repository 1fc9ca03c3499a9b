"""Every number of the domain. Quotas are defaults: the operator may set others per account and region, or per image."""

GIB = 1 << 30

#: Custom images that one account may hold in one region. Source: CUS-5.
CUSTOM_IMAGES_PER_REGION = 10

#: Accounts that one image may be shared with. Source: SHR-8.
ACCOUNTS_PER_IMAGE = 50

#: The highest limit that the operator may set for either quota.
QUOTA_LIMIT_MAX = 100_000

#: Characters in the name of an image or instance. Source: SEL-4.
NAME_LENGTH = 60

#: Characters in a description. Source: SEL-4.
DESCRIPTION_LENGTH = 256

#: Characters in a URI.
URI_LENGTH = 2048

#: Characters in a filter or an order.
FILTER_LENGTH = 2048

#: Characters in a page token.
PAGE_TOKEN_LENGTH = 4096

#: Results in a page if the caller names no number, and at most.
PAGE_SIZE_DEFAULT, PAGE_SIZE_MAX = 50, 1000

#: Operations in a page at most: one that launched many instances carries all of them.
OPERATIONS_PAGE_SIZE_MAX = 100

#: Labels of one resource.
LABELS = 64

#: Bundled software of one image.
SOFTWARE = 100

#: Accounts that one call may name.
ACCOUNTS_PER_CALL = 1000

#: Images that BatchGetImages may name.
IMAGES_PER_CALL = 100

#: Regions that an account may be active in.
REGIONS_PER_ACCOUNT = 100

#: Destinations of one CopyImage.
DESTINATIONS_PER_CALL = 20

#: Instances that one CreateInstance may launch.
INSTANCES_PER_CALL = 100

#: Bytes of an imported file, and of the disk in it. Source: CUS-10.
IMPORT_SIZE_BYTES, IMPORT_DISK_BYTES = 50 * GIB, 500 * GIB

#: The most that an image may ask for as its smallest disk and memory.
MIN_DISK_BYTES_MAX, MIN_MEMORY_BYTES_MAX = 500 * GIB, 24 * 1024 * GIB

#: Seconds after which a refused call that may succeed later should be sent again.
RETRY_DELAY_SECONDS = 1
