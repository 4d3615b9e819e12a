import { randomBytes } from 'node:crypto'
import { once } from 'node:events'
import { type AddressInfo, createServer, type Socket } from 'node:net'
import t from 'tap'
import { UpstreamError } from '../../src/mirror/upstream.js'
import { pause, within } from '../harness.js'
import { clientOf, digestOf, drain, repository } from './fixture.js'

const layer = randomBytes(100_000)
const length = `Content-Length: ${layer.length}\r\n`

/** How an answer is sent, and whether all of it can arrive. */
const endings: Readonly<Record<string, { head: string; body: Buffer; end: (socket: Socket) => void }>> = {
  'a length, and the end': { head: length, body: layer, end: (socket) => socket.end() },
  'no length, and the end': { head: '', body: layer, end: (socket) => socket.end() },
  'half of it, and the end': { head: length, body: layer.subarray(0, 70_000), end: (socket) => socket.end() },
  'half of it, and a reset': {
    head: length,
    body: layer.subarray(0, 70_000),
    end: (socket) => socket.resetAndDestroy(),
  },
  'all of it, and a reset': { head: length, body: layer, end: (socket) => socket.resetAndDestroy() },
}

t.test('R40: an answer that ends while its reader is behind is read to its end', async (t) => {
  for (const [name, { head, body, end }] of Object.entries(endings)) {
    const server = createServer((socket) => {
      socket.on('error', () => undefined)
      socket.once('data', () => {
        socket.write(`HTTP/1.1 200 OK\r\nConnection: close\r\n${head}\r\n`)
        socket.write(body, () => setTimeout(end, 50, socket))
      })
    })
    server.listen(0, '127.0.0.1')
    await once(server, 'listening')
    const { port } = server.address() as AddressInfo
    const blob = await clientOf(t, new URL(`http://127.0.0.1:${port}`)).openBlob(
      repository,
      digestOf(layer),
      0,
    )
    await pause(150)
    const got = await within(2000, name, drain(blob)).catch((error: unknown) => error)
    const isWhole = Buffer.isBuffer(got) && got.equals(layer)
    if (name.endsWith('and the end') && body === layer) t.ok(isWhole, name)
    else t.ok(isWhole || got instanceof UpstreamError, name)
    server.close()
  }
})
