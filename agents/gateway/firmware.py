"""What firmware and initrd ask of the gateway: /boot/v1 (docs/protocol.md, section 1)."""

from agents import netboot, plans, scripts
from agents.gateway.daemons import session_signer
from agents.gateway.database import Database
from agents.gateway.http import Answer, Request
from agents.gateway.parking import Parking
from fleet.signify import signify


class Firmware:
    def __init__(self, database: Database, parking: Parking) -> None:
        self._database, self._parking = database, parking

    def start(self, request: Request) -> Answer:
        return Answer.text(netboot.start_script(request.query.get("site", "")))

    async def script(self, request: Request) -> Answer:
        return Answer.text(await self._database.write_all(scripts.client_scripts, request.query))

    async def plan(self, request: Request) -> Answer:
        form = request.form()
        try:
            plan = await self._database.write_all(plans.boot_plans, form)
        except netboot.Refusal as refusal:
            await self._database.write(netboot.note, refusal, form)
            raise
        if begun := plan.session:
            self._parking.superseded_by(begun.client_id)
            self._parking.enter(begun.bearer_digest, begun.pk, begun.client_id, begun.command_keys)
        return Answer.text(f"{plan.text}signature={signify(session_signer(), plan.text.encode())}\n")

    async def trouble(self, request: Request) -> Answer:
        await self._database.write(netboot.trouble, request.form())
        return Answer(204)
