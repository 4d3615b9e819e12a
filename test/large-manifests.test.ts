import { createHash } from 'node:crypto'
import { join } from 'node:path'
import Database from 'better-sqlite3'
import t from 'tap'
import { digestOf } from '../src/oci/digest.js'
import { mediaTypes } from '../src/oci/media-types.js'
import { parseRepositoryName } from '../src/oci/reference.js'
import { openSqliteMetadataStore, prepareSqlite } from '../storage/sqlite-metadata-store.js'
import { commandsOn, did } from './commands.js'
import {
  blob,
  descriptor,
  everyReplyKeptTheRules,
  image,
  manifestOf,
  push,
  pushBlobs,
  putManifest,
  randomBlob,
  scratchDir,
  startServer,
} from './harness.js'

const foreign = 'application/vnd.docker.image.rootfs.foreign.diff.tar.gzip'
const digestOfNumber = (number: number) => `sha256:${createHash('sha256').update(`${number}`).digest('hex')}`

/** A manifest of many layers that lie elsewhere, around some that do not. */
function largeManifest(count: number, needed: ReturnType<typeof randomBlob>[], salt = '') {
  const config = blob(`{"salt":"${salt}"}`)
  const elsewhere = Array.from({ length: count }, (_, at) => ({
    mediaType: foreign,
    digest: digestOfNumber(at),
    size: 1,
  }))
  const layers = [...elsewhere, ...needed.map((content) => descriptor(content))]
  const mediaType = mediaTypes.dockerManifest
  const body = { schemaVersion: 2, mediaType, config: descriptor(config), layers }
  return manifestOf(body, mediaType, [config, ...needed])
}

const server = await startServer(t, { config: { tags: { undo: '1h' } } })

t.test(
  'S99: a manifest of thousands of parts is stored, kept, deleted and restored like any other',
  async (t) => {
    const layer = randomBlob(100)
    const made = largeManifest(3000, [layer])
    const other = largeManifest(3000, [layer], 'other')
    await push(server, 'large', 'one', made)
    await push(server, 'large', 'two', other)
    const again = await putManifest(server, 'large', 'three', made)
    t.equal(again.status, 201, 'the same again, under another tag')
    const got = await server.request('GET', '/v2/large/manifests/three')
    t.ok(got.body.equals(made.bytes), 'byte for byte')
    const unlink = () => server.request('DELETE', `/v2/large/blobs/${layer.digest}`)
    t.equal((await unlink()).status, 405, 'what it names stays')
    t.equal((await server.request('DELETE', `/v2/large/manifests/${other.digest}`)).status, 202)
    t.equal((await unlink()).status, 405, 'as long as one of them names it')
    t.equal((await server.request('DELETE', `/v2/large/manifests/${made.digest}`)).status, 202)
    t.equal((await unlink()).status, 202)
    await did(t, commandsOn(server.data)('tag restore large:one'))
    t.equal((await server.request('GET', '/v2/large/manifests/one')).status, 200)
    t.equal((await server.request('GET', `/v2/large/blobs/${layer.digest}`)).status, 200, 'with its layer')
    t.equal((await unlink()).status, 405, 'which stays again')
  },
)

t.test('S99, S102: a manifest of thousands of parts that is refused leaves nothing behind', async (t) => {
  const layers = Array.from({ length: 600 }, () => randomBlob(10))
  const made = largeManifest(2000, layers)
  const [config, first = randomBlob()] = made.parts
  if (config === undefined) throw new Error('no config')
  const kept = image({ config, layers: [first] })
  await push(server, 'refused', 'small', kept)
  const refused = await putManifest(server, 'refused', 'large', made)
  t.match(refused, { status: 400, code: 'MANIFEST_BLOB_UNKNOWN' })
  t.equal(refused.errors.length, 20)
  await pushBlobs(server, 'refused', layers[1] ?? first)
  t.equal((await server.request('DELETE', `/v2/refused/manifests/${kept.digest}`)).status, 202)
  t.equal((await server.request('DELETE', `/v2/refused/blobs/${layers[1]?.digest}`)).status, 202, 'not named')
  t.equal((await putManifest(server, 'never', 'large', made)).status, 400)
  const index = new Database(join(server.data, 'boathouse.db'), { readonly: true })
  t.teardown(() => index.close())
  t.equal(index.prepare('SELECT count(*) FROM manifest_draft').pluck().get(), 0, 'no draft')
  const orphans = `SELECT count(*) FROM manifest_child c WHERE NOT EXISTS (
    SELECT 1 FROM manifest WHERE id = c.manifest_id)`
  t.equal(index.prepare(orphans).pluck().get(), 0, 'no edge without its manifest')
})

t.test('S99: others write while a large manifest is being stored', async (t) => {
  const path = join(scratchDir(t), 'turns.db')
  prepareSqlite(path)
  const store = await openSqliteMetadataStore({ path, onFatal: (error) => t.fail(error.message) })
  t.teardown(() => store.close())
  const repository = parseRepositoryName('a')
  const bytes = Buffer.from('large')
  const packed = Array.from({ length: 40 }, (_, piece) =>
    JSON.stringify(
      Array.from({ length: 250 }, (_, at) => ({
        ...{ digest: digestOfNumber(piece * 250 + at), size: 1, role: 'blob', required: false },
      })),
    ),
  )
  let isStored = false
  const stored = store
    .putManifest({
      ...{ repository, digest: digestOf(bytes), mediaType: 'a/b', bytes, children: [], packed },
      ...{ subject: undefined, artifactType: undefined, annotations: undefined, tags: [], sparse: false },
      ...{ immutable: [], condition: undefined, now: 1 },
    })
    .then((result) => {
      isStored = true
      return result
    })
  let between = 0
  for (let at = 0; !isStored; at++) {
    await store.startUpload({ id: `${at}`, repository, owner: '', algorithm: 'sha256' }, 1_000_000, 1)
    between++
  }
  t.match(await stored, { outcome: 'stored' })
  t.ok(between > 20, `${between} sessions were opened meanwhile`)
})

everyReplyKeptTheRules(t)
