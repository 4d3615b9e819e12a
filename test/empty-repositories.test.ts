import { join } from 'node:path'
import Database from 'better-sqlite3'
import t from 'tap'
import { commandsOn, did } from './commands.js'
import {
  eventually,
  everyReplyKeptTheRules,
  finishUpload,
  image,
  openUpload,
  push,
  pushBlobs,
  putManifest,
  randomBlob,
  type Server,
  startServer,
  tagsOf,
} from './harness.js'
import { startFakeUpstream } from './mirror/fake-upstream.js'

/** The names that the index knows. */
function namesIn(server: Server, table: 'repository.name' | 'quota_repository.repository'): string[] {
  const [from, column] = table.split('.')
  const index = new Database(join(server.data, 'boathouse.db'), { readonly: true })
  try {
    return index.prepare<[], string>(`SELECT DISTINCT ${column} FROM ${from} ORDER BY 1`).pluck().all()
  } finally {
    index.close()
  }
}

t.test('S102: what is refused leaves no name behind', async (t) => {
  const server = await startServer(t, { config: { quotas: ['**=1MiB'] } })
  const made = image()
  const layer = randomBlob(100)
  t.equal((await putManifest(server, 'no/blobs', 'x', made)).status, 400)
  const type = { 'Content-Type': made.mediaType }
  t.equal((await putManifest(server, 'no/match', 'x', made, { ...type, 'If-Match': '"x"' })).status, 412)
  t.equal((await putManifest(server, 'no/json', 'x', { ...made, bytes: Buffer.from('{') })).status, 400)
  const wrong = `/v2/no/digest/blobs/uploads/?digest=${made.digest}`
  t.equal((await server.request('POST', wrong, { body: layer.bytes })).status, 400)
  t.equal((await server.request('GET', '/v2/no/pull/manifests/x')).status, 404)
  t.equal((await server.request('DELETE', `/v2/no/delete/manifests/${made.digest}`)).status, 404)
  t.strictSame(namesIn(server, 'repository.name'), [])
  await push(server, 'full', 'x', image({ layers: [randomBlob(1_048_000)] }))
  for (const query of ['', `?mount=${made.digest}&from=full`]) {
    const path = `/v2/no/room/blobs/uploads/${query}`
    const { status } = await server.request('POST', path)
    if (status === 202) continue // there was room for a session
    t.equal(status, 403)
  }
  t.strictSame(namesIn(server, 'repository.name'), ['full'])
})

t.test('S102: what a mirror is asked for in vain leaves no name behind', async (t) => {
  const upstream = await startFakeUpstream(t)
  upstream.addImage('team/app', '1', [randomBlob(100).bytes])
  const mirrors = [{ name: 'up.test', url: upstream.url.origin }]
  const server = await startServer(t, { config: { mirrors } })
  const { digest } = randomBlob()
  for (const path of ['manifests/x', `manifests/${digest}`, `blobs/${digest}`, `referrers/${digest}`]) {
    const reply = await server.request('GET', `/v2/up.test/no/such/${path}`)
    t.ok([200, 404].includes(reply.status), `${path}: ${reply.status}`)
  }
  await eventually('nothing is there', () => namesIn(server, 'repository.name').length === 0)
  t.equal((await server.request('GET', '/v2/up.test/team/app/manifests/1')).status, 200)
  t.strictSame(namesIn(server, 'repository.name'), ['up.test/team/app'])
})

t.test(
  'S102: a repository goes with the last that is in it, and comes again with the next push',
  async (t) => {
    const times = {
      tags: { undo: '1ms' },
      gc: { grace: '1s', untagged: '1s', interval: '24d' },
    }
    const server = await startServer(t, { config: { ...times, quotas: ['**=1GiB'] } })
    const run = commandsOn(server.data)
    const left = image()
    await push(server, 'left', left.digest, left)
    await push(server, 'kept', 'x', image())
    await pushBlobs(server, 'blob', randomBlob(100))
    await push(server, 'begun', left.digest, left)
    const place = await openUpload(server, 'begun')
    for (const name of ['left', 'begun']) {
      t.equal((await server.request('DELETE', `/v2/${name}/manifests/${left.digest}`)).status, 202)
    }
    const settings = ['--config', join(server.data, '..', 'config-1.yaml')].join(' ')
    await eventually('what is empty has gone', async () => {
      await did(t, run(`gc ${settings}`))
      return namesIn(server, 'repository.name').join() === 'begun,kept'
    })
    t.strictSame(namesIn(server, 'quota_repository.repository'), ['begun', 'kept'])
    const layer = randomBlob(50)
    await finishUpload(server, place, layer.digest, layer.bytes)
    await push(server, 'left', 'y', left)
    t.strictSame(await tagsOf(server, 'left'), ['y'], 'as if it had never been away')
    t.strictSame(namesIn(server, 'repository.name'), ['begun', 'kept', 'left'])
  },
)

everyReplyKeptTheRules(t)
