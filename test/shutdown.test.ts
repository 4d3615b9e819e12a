import { join } from 'node:path'
import t from 'tap'
import {
  eventually,
  everyReplyKeptTheRules,
  filesBelow,
  image,
  type Manifest,
  newRepository,
  openUpload,
  putManifest,
  RawConnection,
  randomBlob,
  resumeUpload,
  type Server,
  scratchDir,
  startServer,
} from './harness.js'

const ends = ['SIGTERM', 'SIGKILL'] as const

function end(server: Server, how: (typeof ends)[number]) {
  return how === 'SIGTERM' ? server.stop() : server.kill()
}

const repository = newRepository('shutdown')

t.test('R32: SIGTERM lets what is under way finish, and the server ends as soon as it has', async (t) => {
  const draining = await startServer(t, { config: { timeouts: { shutdown: '1h' } } })
  const location = await openUpload(draining, repository)
  const upload = await RawConnection.open(draining)
  await upload.request(`PATCH ${location}`, ['Content-Length: 10'], 'abc')
  const idle = await RawConnection.open(draining)
  await idle.request('GET /readyz')
  t.equal((await idle.reply()).status, 200)
  const stopped = draining.stop()
  await idle.closed
  await upload.send('defghij')
  t.equal((await upload.reply()).status, 202)
  t.same(await stopped, { code: 0, signal: null })
})

t.test('R32: a second SIGTERM ends the server at once', async (t) => {
  const draining = await startServer(t, { config: { timeouts: { shutdown: '1h' } } })
  const location = await openUpload(draining, repository)
  const upload = await RawConnection.open(draining)
  await upload.request(`PATCH ${location}`, ['Content-Length: 10'], 'abc')
  const first = draining.stop()
  await eventually('it drains', () => draining.stderr().includes('stopping'))
  await draining.stop()
  await first
})

t.test('R32: what has not finished when the grace time is over is cut off', async (t) => {
  const draining = await startServer(t, { config: { timeouts: { shutdown: '300ms' } } })
  const location = await openUpload(draining, repository)
  const upload = await RawConnection.open(draining)
  await upload.request(`PATCH ${location}`, ['Content-Length: 10'], 'abc')
  t.same(await draining.stop(), { code: 0, signal: null })
  await upload.closed
})

t.test('R32: an upload goes on after SIGTERM cut it off at the end of the grace time', async (t) => {
  const first = await startServer(t, { config: { timeouts: { shutdown: '200ms' } } })
  const repository = newRepository('restart')
  const content = randomBlob(1_000_000)
  const location = await openUpload(first, repository)
  const connection = await RawConnection.open(first)
  await connection.request(
    `PATCH ${location}`,
    ['Content-Length: 1000000'],
    content.bytes.subarray(0, 400_000),
  )
  await eventually('some was read', () => filesBelow(join(first.data, 'uploads')).length > 0)
  t.same(await first.stop(), { code: 0, signal: null })
  const second = await startServer(t, { data: first.data })
  t.equal((await resumeUpload(second, location, content)).status, 201)
  await second.stop()
})

/** Pushes small images and moves tags until the server goes; gives what was acknowledged. */
async function load(server: Server, clients: number) {
  const tags = new Map<string, Set<string>>()
  const manifests = new Map<string, Manifest>()
  let running = true
  const one = async (client: number) => {
    const repository = `load/${client}`
    const tag = `/v2/${repository}/manifests/moving`
    while (running) {
      const manifest = image({ layers: [randomBlob(2000)] })
      try {
        for (const part of manifest.parts) {
          const path = `/v2/${repository}/blobs/uploads/?digest=${part.digest}`
          if ((await server.request('POST', path, { body: part.bytes })).status !== 201) return
        }
        // Until the answer is there, the tag may be on the old manifest or on the new one.
        tags.set(tag, new Set([...(tags.get(tag) ?? []), manifest.digest]))
        if ((await putManifest(server, repository, 'moving', manifest)).status !== 201) return
        tags.set(tag, new Set([manifest.digest]))
        manifests.set(`/v2/${repository}/manifests/${manifest.digest}`, manifest)
      } catch {
        return // the server has gone
      }
    }
  }
  const all = Promise.all(Array.from({ length: clients }, (_, client) => one(client)))
  return {
    tags,
    manifests,
    stop: () => {
      running = false
      return all
    },
  }
}

for (const how of ends) {
  t.test(`R32, R22: ${how} under load loses nothing that was acknowledged`, async (t) => {
    const data = join(scratchDir(t), 'load')
    for (let round = 0; round < (how === 'SIGTERM' ? 1 : 2); round++) {
      const server = await startServer(t, { data, config: { workers: 2, log: { level: 'warn' } } })
      const { tags, manifests, stop } = await load(server, 8)
      await eventually('enough was pushed', () => manifests.size > 40 + round * 20, 60_000)
      const exit = await end(server, how)
      await stop()
      if (how === 'SIGTERM') t.same(exit, { code: 0, signal: null })

      const after = await startServer(t, { data, config: { log: { level: 'warn' } } })
      for (const [path, digests] of tags) {
        const reply = await after.request('GET', path)
        t.ok(
          digests.has(reply.header('docker-content-digest')),
          `${path}: ${reply.header('docker-content-digest')}`,
        )
      }
      for (const [path, manifest] of manifests) {
        const reply = await after.request('GET', path)
        if (!reply.body.equals(manifest.bytes)) t.fail(`${path} is lost`)
        for (const part of manifest.parts) {
          const blob = await after.request('GET', `${path.replace(/manifests.*/, 'blobs')}/${part.digest}`)
          if (!blob.body.equals(part.bytes)) t.fail(`a blob of ${path} is lost`)
        }
      }
      t.pass(`${manifests.size} manifests and their blobs are there`)
      await after.stop()
    }
  })
}

everyReplyKeptTheRules(t)
