import { randomBytes } from 'node:crypto'
import { once } from 'node:events'
import { type AddressInfo, createServer } from 'node:net'
import { setTimeout as delay } from 'node:timers/promises'
import t, { type Test } from 'tap'
import { giveBack } from '../../src/mirror/read-buffers.js'
import { within } from '../harness.js'
import { clientOf, digestOf, repository } from './fixture.js'

const layer = randomBytes(4 * 1024 * 1024)
const connections = 4
const keptOf = 5

/** An upstream whose head comes in pieces, while other answers are at their bodies. */
async function startUpstream(t: Test): Promise<URL> {
  const server = createServer((socket) => {
    socket.on('error', () => undefined)
    socket.once('data', async () => {
      const head = `HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: ${layer.length}\r\n\r\n`
      for (let at = 0; at < head.length; at += 20) {
        socket.write(head.slice(at, at + 20))
        await delay(2)
      }
      socket.end(layer)
    })
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  t.teardown(() => server.close())
  return new URL(`http://127.0.0.1:${(server.address() as AddressInfo).port}`)
}

t.test('memory for what comes is used again when it has been given back, and never before', async (t) => {
  const client = clientOf(t, await startUpstream(t))
  const memories = new Set<ArrayBufferLike>()
  const kept: { readonly position: number; readonly chunk: Buffer }[] = []
  let chunks = 0
  let turn = 0

  async function pull(): Promise<void> {
    await delay(30 * turn++)
    const { body, size } = await client.openBlob(repository, digestOf(layer), 0)
    t.equal(size, layer.length, 'the head is read as it was sent')
    let position = 0
    body.on('data', (chunk: Buffer) => {
      if (!chunk.equals(layer.subarray(position, position + chunk.length)))
        t.fail(`wrong from ${position} on`)
      chunks++
      memories.add(chunk.buffer)
      if (chunks % keptOf === 0) kept.push({ position, chunk })
      else giveBack(chunk)
      position += chunk.length
    })
    await once(body, 'end')
    t.equal(position, layer.length, 'all of it has come')
  }

  await within(20_000, 'the pulls', Promise.all(Array.from({ length: connections }, pull)))
  for (const { position, chunk } of kept) {
    if (!chunk.equals(layer.subarray(position, position + chunk.length)))
      t.fail(`${position} was overwritten`)
  }
  t.ok(kept.length > 0, `${kept.length} chunks were kept`)
  t.ok(memories.size < chunks / 2, `${memories.size} buffers served ${chunks} chunks`)
})

t.test('memory from elsewhere may be given back', async (t) => {
  const own = Buffer.from('own')
  giveBack(own)
  giveBack(Buffer.alloc(0))
  t.equal(own.toString(), 'own')
})
