import { mkdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import {
  eventually,
  everyReplyKeptTheRules,
  filesBelow,
  finishUpload,
  isError,
  newRepository,
  openUpload,
  pause,
  RawConnection,
  randomBlob,
  scratchDir,
  startServer,
} from './harness.js'

t.test('UP-10, R24, R25: idle uploads are dropped with their bytes, used ones live on', async (t) => {
  const server = await startServer(t, { config: { uploads: { expireAfter: '6s' } } })
  const repository = newRepository('expiry')
  const files = () => filesBelow(join(server.data, 'uploads'))
  const content = randomBlob(25)
  const idle = await openUpload(server, repository)
  await server.request('PATCH', idle, { body: Buffer.alloc(10_000) })
  const empty = await openUpload(server, repository)
  const active = await openUpload(server, repository)
  const slow = await openUpload(server, repository)
  t.equal(files().length, 1)

  // Both last half as long again as an idle upload lives: one in many requests, one in a single one.
  const connection = await RawConnection.open(server)
  await connection.request(`PATCH ${slow}`, [`Content-Length: ${content.size}`])
  for (const [at, byte] of content.bytes.entries()) {
    const reply = await server.request('PATCH', active, { body: Buffer.from([byte]) })
    t.equal(reply.status, 202, `chunk ${at}`)
    await connection.send(Buffer.from([byte]))
    await pause(360)
  }
  t.equal((await connection.reply()).status, 202, 'the slow one was not cut')
  await connection.close()
  for (const location of [active, slow]) await finishUpload(server, location, content.digest)

  for (const location of [idle, empty]) {
    await eventually(
      'the idle session is gone',
      async () => (await server.request('GET', location)).status === 404,
    )
    const late = await server.request('PATCH', location, { body: 'x' })
    isError(t, late, 404, 'BLOB_UPLOAD_UNKNOWN')
  }
  await eventually('its bytes are gone', () => files().length === 0)
  await server.stop()
})

t.test(
  'UP-10: uploads that became idle while the server was away are dropped when it comes back',
  async (t) => {
    const first = await startServer(t)
    const location = await openUpload(first, newRepository('expiry'))
    await first.request('PATCH', location, { body: 'abc' })
    await first.kill()
    const second = await startServer(t, { data: first.data, config: { uploads: { expireAfter: '1s' } } })
    await eventually(
      'the session is gone',
      async () => (await second.request('GET', location)).status === 404,
    )
    await eventually('its bytes too', () => filesBelow(join(second.data, 'uploads')).length === 0)
    await second.stop()
  },
)

t.test('R25: bytes that no session claims are removed', async (t) => {
  const data = join(scratchDir(t), 'stray')
  mkdirSync(join(data, 'uploads'), { recursive: true })
  writeFileSync(join(data, 'uploads', '01234567-89ab-4cde-8f01-23456789abcd'), 'left by a crash')
  const server = await startServer(t, { data })
  await eventually('the file is gone', () => filesBelow(join(data, 'uploads')).length === 0)
  t.equal((await server.request('GET', '/readyz')).status, 200)
  await server.stop()
})

everyReplyKeptTheRules(t)
