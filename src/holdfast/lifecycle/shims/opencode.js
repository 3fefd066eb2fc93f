// holdfast hook shim: opencode
// Tells Holdfast what happens in opencode's sessions: ids and moments, nothing that was written.
// Its place is .opencode/plugins/holdfast.js; `holdfast hook install opencode` puts it there.
import { spawn } from "node:child_process"
import { randomUUID } from "node:crypto"

const HOLDFAST = __HOLDFAST__
const TIMEOUT_MS = 10000

function tell(hook, session, turn) {
  if (!session) return Promise.resolve()
  const told = { shim: 1, hook, session_id: session, delivery_id: randomUUID(), data: {} }
  if (turn) told.turn_id = turn
  return new Promise((resolve) => {
    try {
      const [program, ...words] = [...HOLDFAST, "--event", hook]
      const child = spawn(program, words, { stdio: ["pipe", "ignore", "ignore"], timeout: TIMEOUT_MS })
      child.on("error", resolve)
      child.on("close", resolve)
      child.stdin.on("error", resolve)
      child.stdin.end(JSON.stringify(told))
    } catch {
      resolve() // opencode goes on, whatever becomes of us
    }
  })
}

export const Holdfast = async () => ({
  event: async ({ event }) => {
    const said = event.properties ?? {}
    switch (event.type) {
      case "session.created":
      case "session.deleted":
        return tell(event.type, said.info?.id)
      case "session.idle":
      case "session.compacted":
        return tell(event.type, said.sessionID)
    }
  },
  "chat.message": async (input) => tell("chat.message", input.sessionID, input.messageID),
  "experimental.session.compacting": async (input) => tell("experimental.session.compacting", input.sessionID),
})
