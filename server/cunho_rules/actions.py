"""Every action as its ordered tuple of checks: which rules may refuse it, in which order. No rule is worded here."""

from cunho_rules import accounts, images, instances
from cunho_rules.checks import Action, action

# --- images

GET_IMAGE = action("GetImage", images.image_visible)

LIST_IMAGES = action("ListImages", accounts.region_exists, accounts.instance_type_exists)

RESOLVE_IMAGE = action("ResolveImage", accounts.region_exists, images.family_resolves)

CREATE_IMAGE = action(
    "CreateImage",
    accounts.region_exists,
    instances.instance_visible,
    accounts.by_account,
    accounts.not_suspended,
    instances.instance_in_region,
    instances.instance_idle,
    instances.imageable,
    accounts.place_active,
    accounts.name_free,
    accounts.image_quota,
)

IMPORT_IMAGE = action(
    "ImportImage",
    accounts.region_exists,
    images.uri_allowed,
    accounts.by_account,
    accounts.not_suspended,
    accounts.place_active,
    images.format_agrees,
    images.small_enough,
    accounts.name_free,
    accounts.image_quota,
)

COPY_IMAGE = action(
    "CopyImage",
    accounts.region_exists,
    images.image_visible,
    images.not_public,
    images.shared_not_copyable,
    images.owner_only,
    images.copied_elsewhere,
    accounts.not_suspended,
    images.available_to_copy,
    accounts.place_active,
    accounts.name_free,
    accounts.image_quota,
)

PUBLISH_IMAGE = action(
    "PublishImage",
    accounts.region_exists,
    accounts.by_operator,
    accounts.name_free,
)

UPDATE_IMAGE = action(
    "UpdateImage",
    images.image_visible,
    images.public_by_operator_only,
    images.shared_not_modifiable,
    images.owner_only,
    images.image_etag,
    accounts.name_free,
)

SHARE_IMAGE = action(
    "ShareImage",
    images.not_with_self,
    images.image_visible,
    images.not_public,
    images.shared_not_reshareable,
    images.owner_only,
    images.image_etag,
    accounts.not_suspended,
    images.available_to_share,
    images.recipients_known,
    images.recipients_in_region,
    images.share_quota,
)

SET_IMAGE_SHARES = action(
    "SetImageShares",
    images.not_with_self,
    images.image_visible,
    images.not_public,
    images.shared_not_reshareable,
    images.owner_only,
    images.image_etag,
    accounts.not_suspended_to_share_further,
    images.available_to_share_further,
    images.recipients_known,
    images.recipients_in_region,
    images.share_quota_of_whole_list,
)

UNSHARE_IMAGE = action(
    "UnshareImage",
    images.image_visible,
    images.not_public,
    images.shared_not_reshareable,
    images.owner_only,
    images.image_etag,
)

LIST_IMAGE_SHARES = action("ListImageShares", images.image_visible, images.shares_not_hidden)

LEAVE_IMAGE_SHARE = action("LeaveImageShare", images.image_visible, images.shared_with_caller)

DEPRECATE_IMAGE = action(
    "DeprecateImage",
    images.image_visible,
    images.replacement_visible,
    images.public_by_operator_only,
    images.shared_not_modifiable,
    images.owner_only,
    images.image_etag,
    images.available_to_deprecate,
    images.replacement_public,
)

DELETE_IMAGE = action(
    "DeleteImage",
    images.image_visible,
    images.public_by_operator_only,
    images.shared_not_deletable,
    images.owner_only,
    images.image_etag,
    images.not_busy,
    images.not_shared,
)

# --- instances

CREATE_INSTANCE = action(
    "CreateInstance",
    accounts.region_exists,
    accounts.zone_in_region,
    accounts.instance_type_exists,
    images.image_visible,
    accounts.by_account,
    images.image_etag,
    accounts.not_suspended,
    images.image_in_region,
    accounts.active_in_region,
    images.available_to_launch,
    images.not_obsolete,
    images.image_fits_type,
)

GET_INSTANCE = action("GetInstance", instances.instance_visible)

LIST_INSTANCES = action("ListInstances", accounts.region_exists)

UPDATE_INSTANCE = action("UpdateInstance", instances.instance_visible, instances.owner_only, instances.instance_etag)

START_INSTANCE = action(
    "StartInstance",
    instances.instance_visible,
    instances.owner_only,
    instances.instance_etag,
    instances.instance_idle,
    instances.stopped,
)

STOP_INSTANCE = action(
    "StopInstance",
    instances.instance_visible,
    instances.owner_only,
    instances.instance_etag,
    instances.instance_idle,
    instances.running,
)

REBOOT_INSTANCE = action(
    "RebootInstance",
    instances.instance_visible,
    instances.owner_only,
    instances.instance_etag,
    instances.instance_idle,
    instances.running,
)

REINSTALL_INSTANCE = action(
    "ReinstallInstance",
    instances.instance_visible,
    images.image_visible,
    instances.owner_only,
    instances.instance_etag,
    instances.instance_idle,
    instances.running_or_stopped,
    images.image_in_region,
    images.available_to_launch,
    images.not_obsolete,
    images.image_fits_type,
)

DELETE_INSTANCE = action(
    "DeleteInstance",
    instances.instance_visible,
    instances.owner_only,
    instances.instance_etag,
    instances.instance_idle,
    instances.deletable,
)

# --- accounts and quotas

GET_ACCOUNT = action("GetAccount", accounts.account_visible)

REGISTER_ACCOUNT = action("RegisterAccount", accounts.regions_exist, accounts.by_operator, accounts.account_new)

LIST_ACCOUNTS = action("ListAccounts", accounts.by_operator)

UPDATE_ACCOUNT = action(
    "UpdateAccount",
    accounts.regions_exist,
    accounts.account_visible,
    accounts.by_operator,
    accounts.account_etag,
    accounts.regions_left_empty,
)

GET_IMAGE_QUOTA = action("GetQuota", accounts.region_exists, accounts.account_visible, accounts.place_active)

GET_SHARE_QUOTA = action("GetQuota", images.image_visible, images.not_public, images.shares_not_hidden)

LIST_QUOTAS = action("ListQuotas", accounts.account_visible)

SET_IMAGE_QUOTA = action(
    "SetQuotaLimit",
    accounts.region_exists,
    accounts.account_visible,
    accounts.by_operator,
    accounts.place_active,
    accounts.image_limit_covers_usage,
)

SET_SHARE_QUOTA = action(
    "SetQuotaLimit",
    images.image_visible,
    accounts.by_operator,
    images.not_public,
    accounts.share_limit_covers_usage,
)

# --- what can be explained, in the order of the documentation

#: Actions that CheckImageActions explains.
IMAGE_ACTIONS: dict[str, Action] = {
    each.name: each
    for each in (
        CREATE_INSTANCE,
        COPY_IMAGE,
        UPDATE_IMAGE,
        SHARE_IMAGE,
        UNSHARE_IMAGE,
        SET_IMAGE_SHARES,
        LIST_IMAGE_SHARES,
        LEAVE_IMAGE_SHARE,
        DEPRECATE_IMAGE,
        DELETE_IMAGE,
    )
}

#: Actions that CheckInstanceActions explains.
INSTANCE_ACTIONS: dict[str, Action] = {
    each.name: each
    for each in (
        CREATE_IMAGE,
        UPDATE_INSTANCE,
        START_INSTANCE,
        STOP_INSTANCE,
        REBOOT_INSTANCE,
        REINSTALL_INSTANCE,
        DELETE_INSTANCE,
    )
}

#: Every action.
ACTIONS: tuple[Action, ...] = (
    GET_IMAGE,
    LIST_IMAGES,
    RESOLVE_IMAGE,
    IMPORT_IMAGE,
    PUBLISH_IMAGE,
    *IMAGE_ACTIONS.values(),
    GET_INSTANCE,
    LIST_INSTANCES,
    *INSTANCE_ACTIONS.values(),
    GET_ACCOUNT,
    REGISTER_ACCOUNT,
    LIST_ACCOUNTS,
    UPDATE_ACCOUNT,
    GET_IMAGE_QUOTA,
    GET_SHARE_QUOTA,
    LIST_QUOTAS,
    SET_IMAGE_QUOTA,
    SET_SHARE_QUOTA,
)
