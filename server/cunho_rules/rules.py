"""Every rule of the service in one table. Ids never change; docs/rules.md is written from here.

A rule that can refuse is a check in `images`, `instances` or `accounts`, or is named by an entry of `refusals`; the
others say what answers contain.
"""

from typing import NamedTuple


class Rule(NamedTuple):
    """One rule: its statement and where it comes from."""

    statement: str
    #: spec = the product's description; docs = common practice of such services; ours = our own decision; or an AIP.
    source: str


#: Heading and rules of each section, in the order of the documentation.
SECTIONS: dict[str, dict[str, Rule]] = {
    "Choosing an image": {
        "SEL-1": Rule(
            "An image is chosen by region (it is usable in every zone of it), operating system, and architecture: "
            "I386, X86_64 or ARM64, or by 32 or 64 bits.",
            "spec",
        ),
        "SEL-2": Rule(
            "A caller sees every public image, its own custom images and the images shared with it. Any other image "
            "answers as one that does not exist.",
            "spec",
        ),
        "SEL-3": Rule(
            "Lists are filtered and ordered over published fields, and paged by tokens that survive inserts and "
            "deletes. A malformed filter, order or token is refused with field and position.",
            "spec, ours",
        ),
        "SEL-4": Rule(
            "An image's name has 1 to 60 characters and is unique per owner and region among images that are not "
            "deleted; its description has up to 256.",
            "docs",
        ),
    },
    "Public images": {
        "PUB-1": Rule("Every account sees and uses every public image; no quota applies.", "spec"),
        "PUB-2": Rule(
            "A public image has an operating system, start-up components and bundled software in named versions, which "
            "can be filtered on.",
            "spec",
        ),
        "PUB-3": Rule(
            "The OS family is LINUX or WINDOWS (OTHER for imported images), with platform and version.", "spec"
        ),
        "PUB-4": Rule(
            "A newer version is published into the same family; the family resolves to the newest usable one; a "
            "retired one refuses new instances, its replacement is public too, and instances that exist live on.",
            "spec, docs",
        ),
        "PUB-5": Rule("A public image is licensed and verified by the operator: its trust is PROVIDER.", "spec"),
        "PUB-6": Rule(
            "Public images are free, except Windows in regions outside mainland China, where the region's licence fee "
            "per hour applies.",
            "spec",
        ),
        "PUB-7": Rule("A public image names who supports it and how to reach them.", "spec"),
        "PUB-8": Rule(
            "Only the operator publishes, changes, retires or deletes a public image; nobody copies or shares it.",
            "docs",
        ),
    },
    "Custom images": {
        "CUS-1": Rule("A custom image is made from one of the account's instances, or imported.", "spec"),
        "CUS-2": Rule(
            "A custom image is visible to its owner and the accounts it is shared with, and to the operator.", "spec"
        ),
        "CUS-3": Rule("A custom image launches any number of instances with the same contents.", "spec"),
        "CUS-4": Rule("The owner, and only the owner, renames, copies, shares and deletes a custom image.", "spec"),
        "CUS-5": Rule(
            "An account holds at most 10 custom images in a region. Images being made count, copies where they land; "
            "images shared with the account, failed and deleted ones do not.",
            "spec",
        ),
        "CUS-6": Rule(
            "The price of a custom image is shown before it is made and kept on it: storage per GiB and month of the "
            "region, less what is left of the free allowance.",
            "spec",
        ),
        "CUS-7": Rule("Copying between regions is free of charge: the quote of a copy has transfer 0.", "spec"),
        "CUS-8": Rule(
            "An image is made from an instance of the account's, in that region, RUNNING or STOPPED, with no other "
            "operation in progress.",
            "docs",
        ),
        "CUS-9": Rule(
            "An instance launched from a shared image may be imaged; the image is the account's own and names the "
            "shared one as its source.",
            "docs",
        ),
        "CUS-10": Rule(
            "An import names an https URI of an allowed host, a format that agrees with the file's name, a file of at "
            "most 50 GiB and a disk of at most 500 GiB.",
            "docs, ours",
        ),
        "CUS-11": Rule(
            "A custom image is not deleted while it is being made or copied from, nor while it is shared unless "
            "forced; instances made from it live on.",
            "docs, ours",
        ),
        "CUS-12": Rule(
            "An AVAILABLE image is copied to other regions that exist; quota and name are checked there; each "
            "destination has its own result; the copy is independent and shares do not follow.",
            "docs",
        ),
        "CUS-13": Rule(
            "A suspended account cannot create, import, copy or share images nor launch; it can list, unshare and "
            "delete.",
            "docs",
        ),
        "CUS-14": Rule(
            "An account makes images and launches instances only in regions that it is active in, and the operator, "
            "who is no account, makes and launches none.",
            "ours",
        ),
    },
    "Shared images": {
        "SHR-1": Rule("A shared image appears to the recipient at once, in the region of the original.", "spec"),
        "SHR-2": Rule("A recipient may only launch instances from a shared image.", "spec"),
        "SHR-3": Rule("A recipient may not rename a shared image nor change anything of it.", "spec"),
        "SHR-4": Rule("A recipient may not copy a shared image.", "spec"),
        "SHR-5": Rule("A recipient may not share a shared image on.", "spec"),
        "SHR-6": Rule("A recipient may not delete a shared image.", "docs"),
        "SHR-7": Rule(
            "A shared image is verified by nobody: its trust is UNVERIFIED, and every launch from it carries the "
            "warning UNVERIFIED_SHARED_IMAGE.",
            "spec",
        ),
        "SHR-8": Rule(
            "An image is shared with at most 50 accounts; the whole call is checked at once, all or nothing.", "spec"
        ),
        "SHR-9": Rule("An image is shared only with accounts that are active in its region.", "spec"),
        "SHR-10": Rule(
            "An image is not shared with its owner nor with unknown accounts; sharing again changes nothing; only "
            "AVAILABLE images are shared.",
            "docs, ours",
        ),
        "SHR-11": Rule(
            "The owner takes an image back from any accounts at any time; from then on they neither see it nor launch "
            "from it, and instances they made live on.",
            "docs",
        ),
        "SHR-12": Rule(
            "A recipient never learns who else an image is shared with nor what it was made from, "
            "and may leave a share.",
            "docs, ours",
        ),
    },
    "Instances": {
        "INS-1": Rule(
            "An instance is launched in a zone of a region, from an image that the caller sees in that region, "
            "AVAILABLE and not obsolete.",
            "spec, docs",
        ),
        "INS-2": Rule("The instance type's architecture, memory and disk fit the image.", "docs"),
        "INS-3": Rule(
            "The check of the image and the birth of the instance are one transaction: no instance is born of an image "
            "that was deleted, unshared or retired before.",
            "ours",
        ),
        "INS-4": Rule(
            "An instance remembers its image as it was at launch, also after the image is gone, and whether it is "
            "still available.",
            "ours",
        ),
        "INS-5": Rule(
            "An instance is started only from STOPPED, stopped and rebooted only from RUNNING, reinstalled from "
            "RUNNING or STOPPED, deleted from RUNNING, STOPPED or FAILED; one operation at a time.",
            "docs",
        ),
        "INS-6": Rule("An instance belongs to one account; to others it answers as one that does not exist.", "ours"),
    },
    "Every call": {
        "ALL-1": Rule("The caller comes from verified credentials, never from the request.", "ours"),
        "ALL-2": Rule(
            "A request_id makes a mutation idempotent per account and method: the same arguments get the first answer "
            "again, others are refused.",
            "AIP-155",
        ),
        "ALL-3": Rule(
            "validate_only runs every check of the call, writes nothing, and gives the answer the call would give.",
            "AIP-163",
        ),
        "ALL-4": Rule("An etag, if given, must match.", "AIP-154"),
        "ALL-5": Rule("Bad input is refused with every offending field named at once.", "AIP-193"),
        "ALL-6": Rule(
            "When several rules refuse, the answer is the first in this order: credentials, shape of the request, "
            "visibility, permission, state, quota.",
            "ours",
        ),
        "ALL-7": Rule(
            "How many calls are answered at once, how many an account makes in a second, and how long each may take, "
            "is bounded; what is over is refused.",
            "ours",
        ),
    },
}

#: Every rule by id.
RULES: dict[str, Rule] = {id: rule for rules in SECTIONS.values() for id, rule in rules.items()}
