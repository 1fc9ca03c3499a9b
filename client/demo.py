"""The whole way of an image, through the client: chosen, launched, made, priced, shared, refused, copied, deleted.

`make demo` runs it, on the server that answers at CUNHO_ADDRESS, or on one started for as long as it takes. It works as
accounts of its own, and deletes what they made.
"""

import os
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill

from google.type.money_pb2 import Money

from cunho import Client, Refused
from cunho.v1 import CopyImageRequest, Decision, Image, ImageKind, Instance, PriceQuote, QuotaId, RuleOutcome

SERVER = Path(sys.executable).with_name("cunho-server")
ADDRESS = os.environ.get("CUNHO_ADDRESS", "127.0.0.1:50051")
ACME, GLOBEX, OPERATOR = "demo-acme", "demo-globex", "operator"
OTHERS = [f"demo-{number:02}" for number in range(1, 51)]
GUANGZHOU, SHANGHAI, FRANKFURT = "ap-guangzhou", "ap-shanghai", "eu-frankfurt"
ZONE_ID, INSTANCE_TYPE = "ap-guangzhou-3", "S5.MEDIUM4"
WINDOWS = "kind = PUBLIC AND os.family = WINDOWS AND architecture = X86_64"
GIB = 1 << 30


def step(title: str) -> None:
    """Prints what comes next."""
    print(f"\n--- {title}")


def say(who: str, text: str) -> None:
    """Prints a line, after who says it or what it is."""
    print(fill(text, 110, initial_indent=f"{who:>17}  ", subsequent_indent=" " * 19, break_on_hyphens=False))


@contextmanager
def refused(account_id: str, call: str) -> Iterator[None]:
    """Tells how the call within is refused; it is a mistake of the demo's, or of the service's, if it is not."""
    try:
        yield
    except Refused as refusal:
        say(account_id, call)
        say("refused", f"{refusal.code.name}, {refusal.reason}, rule {refusal.rule}: {refusal.message}")
        say("", " ".join(f"{key}={value!r}" for key, value in sorted(refusal.metadata.items())))
        say("remedy", refusal.remedy)
    else:
        raise AssertionError(f"{call} was not refused")


def price(quote: PriceQuote) -> str:
    """A quote in words."""
    per_gib, total = money(quote.storage_per_gib_month), money(quote.monthly_total)
    size, free = quote.size_bytes / GIB, quote.free_allowance_bytes / GIB
    return f"{size:.2f} GiB at {per_gib} per GiB and month, {free:.2f} GiB of it free: {total} a month"


def money(amount: Money) -> str:
    """An amount in words."""
    return f"{amount.units + amount.nanos / 1e9:.3f} {amount.currency_code}"


def outcome(decision: Decision) -> str:
    """What an explanation says of an action."""
    if decision.allowed:
        return "allowed" + "".join(f", with the warning {warning.reason}" for warning in decision.warnings)
    denied = next(each for each in decision.outcomes if each.outcome == RuleOutcome.OUTCOME_DENIED)
    return f"denied by {denied.rule}, {denied.reason}: {denied.remedy}"


@dataclass(frozen=True)
class Demo:
    """The demo, with the clients of the accounts that play in it."""

    operator: Client
    acme: Client
    globex: Client

    def run(self) -> None:
        """Goes the whole way, and leaves no image and no instance behind."""
        self.register()
        self.clean_up()  # after a demo that was killed
        try:
            instance = self.launch(self.choose())
            image = self.make(instance)
            self.share(image)
            launched = self.launch_from_share(image)
            self.be_refused(image)
            self.copy(image)
            self.fill_the_quota(instance)
            self.fill_the_shares(image)
            self.take_back(image, launched)
        finally:
            self.clean_up()
        step("Leave the cloud as it was found")
        say("", "no image and no instance of the demo's is left; its accounts stay")

    def register(self) -> None:
        """Registers the accounts of the demo."""
        step(f"The operator registers {ACME}, {GLOBEX} and fifty more accounts, active in {GUANGZHOU} and {SHANGHAI}")
        known = {account.account_id for account in self.operator.list_accounts()}
        new = [account_id for account_id in (ACME, GLOBEX, *OTHERS) if account_id not in known]
        for account_id in new:
            self.operator.register_account(account_id=account_id, region_ids=[GUANGZHOU, SHANGHAI])
        say(OPERATOR, f"{len(new)} registered now, the others earlier")

    def choose(self) -> Image:
        """The image to launch."""
        step("Choose an image by region, operating system and architecture")
        found = self.acme.list_images(
            region_id=GUANGZHOU, filter=WINDOWS, order_by="name desc", usable_with_instance_type=INSTANCE_TYPE
        )
        images = list(found)
        say(ACME, f"ListImages in {GUANGZHOU} for {INSTANCE_TYPE}: {WINDOWS}")
        for image in images:
            say(image.image_id, image.name)
        abroad = next(self.acme.list_images(region_id=FRANKFURT, filter=WINDOWS))
        fee = money(abroad.pricing.license_fee_per_hour)
        say("", f"free of charge here; in {FRANKFURT} the licence of Windows costs {fee} an hour")
        return images[0]

    def launch(self, image: Image) -> Instance:
        """An instance of the first account's."""
        step("Launch an instance")
        launched = self.acme.create_instance(
            region_id=GUANGZHOU, zone_id=ZONE_ID, instance_type=INSTANCE_TYPE, image_id=image.image_id, name="web"
        )
        instance = launched.result(timeout_seconds=60).instances[0]
        state = Instance.State.Name(instance.state)
        say(ACME, f"CreateInstance from {image.name}: {instance.instance_id}, {state} in {instance.zone_id}")
        return instance

    def make(self, instance: Instance) -> Image:
        """The custom image, its price shown first."""
        step("See the price of an image of it, then make it")
        quoted = self.acme.create_image(
            region_id=GUANGZHOU, instance_id=instance.instance_id, name="web-1", validate_only=True
        )
        say(ACME, f"CreateImage with validate_only: {price(quoted.quotes[0])}")
        image = self.make_image(instance, "web-1")
        state, kind = Image.State.Name(image.state), ImageKind.Name(image.kind)
        say(ACME, f"CreateImage: {image.image_id}, {state}, {kind}, made from {image.source.instance_id}")
        return image

    def make_image(self, instance: Instance, name: str) -> Image:
        """A custom image."""
        making = self.acme.create_image(region_id=GUANGZHOU, instance_id=instance.instance_id, name=name)
        return making.result(timeout_seconds=60)

    def share(self, image: Image) -> None:
        """Shares the image with the second account."""
        step("Share it")
        answer = self.acme.share_image(image_id=image.image_id, account_ids=[GLOBEX])
        sharing = answer.image.sharing
        say(ACME, f"ShareImage with {GLOBEX}: shared with {sharing.account_count} of {sharing.account_limit} accounts")

    def launch_from_share(self, image: Image) -> Instance:
        """An instance of the second account's."""
        step("Launch from the share")
        (seen,) = self.globex.list_images(region_id=GUANGZHOU, filter="kind = SHARED")
        trust = Image.Trust.Name(seen.trust)
        say(GLOBEX, f"ListImages: {seen.image_id} of {seen.owner_account_id}, {ImageKind.Name(seen.kind)}, {trust}")
        launched = self.globex.create_instance(
            region_id=GUANGZHOU, zone_id=ZONE_ID, instance_type=INSTANCE_TYPE, image_id=image.image_id
        )
        (instance,) = launched.result(timeout_seconds=60).instances
        say(GLOBEX, f"CreateInstance: {instance.instance_id}, {Instance.State.Name(instance.state)}")
        for warning in launched.warnings:
            say("warning", f"{warning.reason}: {warning.message}")
        return instance

    def be_refused(self, image: Image) -> None:
        """Tries what a recipient may not do, and asks what it may."""
        step("What a recipient may not do, and how it could have known")
        image_id = image.image_id
        with refused(GLOBEX, "UpdateImage, to rename it"):
            self.globex.update_image(image=Image(image_id=image_id, name="mine"), update_mask=["name"])
        with refused(GLOBEX, f"CopyImage to {SHANGHAI}"):
            self.globex.copy_image(image_id=image_id, destinations=[destination(SHANGHAI)])
        with refused(GLOBEX, f"ShareImage with {OTHERS[0]}"):
            self.globex.share_image(image_id=image_id, account_ids=[OTHERS[0]])
        say(GLOBEX, "CheckImageActions:")
        explained = self.globex.check_image_actions(image_id=image_id, target_account_ids=[OTHERS[0]])
        for decision in explained.decisions:
            say(decision.action, outcome(decision))

    def copy(self, image: Image) -> None:
        """Copies the image."""
        step("Copy it to another region, free of charge")
        copying = self.acme.copy_image(image_id=image.image_id, destinations=[destination(SHANGHAI)])
        (quote,), (result,) = copying.quotes, copying.result(timeout_seconds=60).results
        shared_with = result.image.sharing.account_count
        say(ACME, f"CopyImage to {SHANGHAI}: {result.image.image_id}, shared with {shared_with} accounts")
        say("", f"moving it costs {money(quote.transfer)}; keeping it: {price(quote)}")

    def fill_the_quota(self, instance: Instance) -> None:
        """Makes images until the quota refuses."""
        step("Make custom images up to the quota")
        quota = self.acme.get_quota(quota_id=QuotaId.QUOTA_ID_CUSTOM_IMAGES, region_id=GUANGZHOU)
        images = [self.make_image(instance, f"web-{number}") for number in range(quota.usage + 1, quota.limit + 1)]
        say(ACME, f"CreateImage, {len(images)} times more; the last one: {price(images[-1].quote)}")
        with refused(ACME, "CreateImage, one more"):
            self.make_image(instance, "one more")

    def fill_the_shares(self, image: Image) -> None:
        """Shares the image until its quota refuses."""
        step("Share with as many accounts as may be")
        *most, one_more = OTHERS
        answer = self.acme.share_image(image_id=image.image_id, account_ids=most)
        sharing = answer.image.sharing
        say(ACME, f"ShareImage with {len(most)} accounts at once: {sharing.account_count} of {sharing.account_limit}")
        with refused(ACME, f"ShareImage with {one_more}"):
            self.acme.share_image(image_id=image.image_id, account_ids=[one_more])

    def take_back(self, image: Image, launched: Instance) -> None:
        """Ends the shares, then the image."""
        step("Unshare and delete it")
        image_id = image.image_id
        with refused(ACME, "DeleteImage"):
            self.acme.delete_image(image_id=image_id)
        gone = self.acme.unshare_image(image_id=image_id, account_ids=[GLOBEX, *OTHERS])
        say(ACME, f"UnshareImage from everybody: {len(gone.account_ids)} shares ended")
        with refused(GLOBEX, "GetImage"):
            self.globex.get_image(image_id=image_id)
        still = self.globex.get_instance(instance_id=launched.instance_id)
        available = "still" if still.launch_image.still_available else "no longer"
        state = Instance.State.Name(still.state)
        say(GLOBEX, f"GetInstance: {still.instance_id} is {state}; its image is {available} there to launch from")
        deleted = self.acme.delete_image(image_id=image_id)
        say(ACME, f"DeleteImage: {image_id} is {Image.State.Name(deleted.state)}")

    def clean_up(self) -> None:
        """Deletes every image and instance of the demo's accounts."""
        for client in (self.acme, self.globex):
            for image in list(client.list_images(region_id="-", filter="kind = CUSTOM")):
                client.delete_image(image_id=image.image_id, force=True)
            for instance in list(client.list_instances(region_id="-")):
                client.delete_instance(instance_id=instance.instance_id).result(timeout_seconds=60)


def destination(region_id: str) -> CopyImageRequest.Destination:
    """Where a copy goes."""
    return CopyImageRequest.Destination(region_id=region_id)


@contextmanager
def serving() -> Iterator[str]:
    """The address of the server that answers, or of one started for the demo."""
    if answers():
        print(f"The server on {ADDRESS} answers: the demo uses it.")
        yield ADDRESS
        return
    print(f"No server on {ADDRESS} answers to the development key: the demo starts one for itself.", flush=True)
    with subprocess.Popen([SERVER, "serve", "--address=127.0.0.1:0"], stdout=subprocess.PIPE, text=True) as started:
        try:
            yield printed_address(started.stdout or [])
        finally:
            started.terminate()


def printed_address(lines: Iterable[str]) -> str:
    """The address that a server prints once it answers."""
    for line in lines:
        if found := re.match(r"Cunho serves on (\S+)\.", line):
            return found[1]
    raise ServerError("the server did not start; what it says of that stands above")


class ServerError(Exception):
    """There is no server to use; the message says why."""


def answers() -> bool:
    """True if a server answers at ADDRESS, and knows the development key."""
    try:
        with client(ADDRESS, "--operator", OPERATOR) as operator:
            return any(operator.list_regions(page_size=1, timeout_seconds=3))
    except (Refused, ServerError):
        return False


def client(address: str, *whose: str) -> Client:
    """A client with a token of the development key."""
    made = subprocess.run([SERVER, "token", *whose], capture_output=True, text=True, check=False)
    if made.returncode:
        raise ServerError(made.stderr.strip())
    return Client(address, token=made.stdout)


def main() -> int:
    """Runs the demo; 0 if all went as it should."""
    try:
        with (
            serving() as address,
            client(address, "--operator", OPERATOR) as operator,
            client(address, "--account", ACME) as acme,
            client(address, "--account", GLOBEX) as globex,
        ):
            Demo(operator, acme, globex).run()
    except (Refused, ServerError) as error:
        print(f"The demo stopped: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
