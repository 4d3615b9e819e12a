import { createSocket } from 'node:dgram'
import { once } from 'node:events'
import type { Test } from 'tap'

const typeA = 1

/** Where the question in a DNS message ends: behind its labels, type and class. */
function endOfQuestion(message: Buffer): number {
  let at = 12
  while ((message[at] ?? 0) !== 0) at += 1 + (message[at] ?? 0)
  return at + 5
}

/**
 * A name server on port 53 of a loopback address that gives every name the address that it is told to, for no
 * time at all.
 * @param answer the IPv4 address for the next question
 */
export async function startNameServer(t: Test, address: string, answer: () => string): Promise<void> {
  const socket = createSocket('udp4')
  socket.on('message', (message, { port, address: client }) => {
    const end = endOfQuestion(message)
    const isA = message.readUInt16BE(end - 4) === typeA
    const head = Buffer.from(message.subarray(0, 12))
    head.writeUInt16BE(0x8180, 2)
    head.writeUInt16BE(isA ? 1 : 0, 6)
    head.writeUInt32BE(0, 8)
    // A pointer to the name, type A, class IN, no time to live, four bytes.
    const fields = Buffer.from([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4])
    const record = isA ? [fields, Buffer.from(answer().split('.').map(Number))] : []
    socket.send(Buffer.concat([head, message.subarray(12, end), ...record]), port, client)
  })
  socket.bind(53, address)
  await once(socket, 'listening')
  t.teardown(() => socket.close())
}
