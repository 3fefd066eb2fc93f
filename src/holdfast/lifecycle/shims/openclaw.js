// holdfast hook shim: openclaw
// Tells Holdfast what happens in OpenClaw's sessions: ids and moments, nothing that was written.
//
// Its place is ~/.openclaw/hooks/holdfast/handler.js, with this HOOK.md beside it; then `openclaw hooks enable holdfast`.
//
//     ---
//     name: holdfast
//     description: "Tell Holdfast what happens in sessions"
//     metadata:
//       openclaw:
//         events: ["session:compact:before", "session:compact:after", "session:end", "message:preprocessed", "message:sent"]
//     ---
import { spawn } from "node:child_process"
import { randomUUID } from "node:crypto"

const HOLDFAST = __HOLDFAST__
const TIMEOUT_MS = 10000

export default async function handler(event) {
  const hook = `${event.type}:${event.action}`
  const session = event.context?.sessionId ?? event.sessionKey
  if (!session) return
  const told = { shim: 1, hook, session_id: session, delivery_id: randomUUID(), data: {} }
  const turn = event.context?.messageId
  if (turn) told.turn_id = String(turn)
  await new Promise((resolve) => {
    try {
      const [program, ...words] = [...HOLDFAST, "--event", hook]
      const child = spawn(program, words, { stdio: ["pipe", "ignore", "ignore"], timeout: TIMEOUT_MS })
      child.on("error", resolve)
      child.on("close", resolve)
      child.stdin.on("error", resolve)
      child.stdin.end(JSON.stringify(told))
    } catch {
      resolve() // OpenClaw goes on, whatever becomes of us
    }
  })
}
