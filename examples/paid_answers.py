"""An agent that never pays twice for the same answer.

    python examples/paid_answers.py agent.db "why is the sky blue"

Kill it whenever you like and start it again with the same question: answers that were paid for are not paid for
again, not even when the process died after the request was sent and before the answer was noted. `Provider`
stands for a model provider that can be asked, for free, what it answered to a request of yours.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import sys
from pathlib import Path

import holdfast


class Provider:
    """Somebody else's service: what it was paid for is in a file, one line for each call."""

    book = Path("provider.jsonl")

    def complete(self, prompt: str, key: str) -> str:
        """Answer a prompt; every call costs money."""
        answer = f"an answer of {len(prompt)} characters"
        with self.book.open("a") as book:
            book.write(json.dumps({"key": key, "answer": answer}) + "\n")
        return answer

    def find(self, key: str) -> str | None:
        """Say, for free, what was answered under a key."""
        calls = [json.loads(line) for line in self.book.read_text().splitlines()] if self.book.exists() else []
        return next((call["answer"] for call in calls if call["key"] == key), None)


provider = Provider()


def already_answered(step: holdfast.StepHandle) -> holdfast.Verdict:
    """The probe: asked when nobody knows whether a call was made."""
    answer = provider.find(step.idempotency_key.hex())
    return holdfast.not_happened() if answer is None else holdfast.happened(answer)


@holdfast.step(effect=holdfast.exactly_once("cost_bearing", on_ambiguous=holdfast.reconcile(already_answered)))
async def ask(prompt: str) -> str:
    """Make one paid call."""
    return provider.complete(prompt, holdfast.current_step().idempotency_key.hex())


@holdfast.durable(kind="examples.research")
async def research(question: str) -> str:
    """Ask three sub-questions side by side, then for a summary."""
    parts = await asyncio.gather(*(ask(f"{question}: part {number}") for number in range(3)))
    return await ask(f"summarise: {parts}")


async def main(ledger: str, question: str) -> None:
    """Run, or resume, the research on a question."""
    id = f"research-{hashlib.sha256(question.encode()).hexdigest()[:16]}"
    async with holdfast.open(ledger) as hf:
        print(await hf.run(research, question, id=id))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
