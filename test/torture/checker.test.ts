import { cpSync, readdirSync, readFileSync, rmSync, truncateSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import Database from 'better-sqlite3'
import t from 'tap'
import { checkFolder, checkServed, expectationsOf, type FolderOptions, referrersOf } from './checker.js'
import { digestOf, type Manifest, makeBlob, makeImage, makeIndex } from './content.js'
import { Random } from './random.js'
import { startServer } from './server.js'
import { Wire } from './wire.js'

const main = fileURLToPath(new URL('../../src/main.js', import.meta.url))
const random = new Random('checker')
const layer = { bytes: Buffer.from('a layer'), digest: digestOf(Buffer.from('a layer')) }
const image = makeImage(random, [])
const signature = makeImage(random, [], image.manifest.digest)
const index = makeIndex(random, [image.manifest])
const strict: FolderOptions = { isCleanStop: true, mayBeOrphan: () => false }

const folder = t.testdir()
const sound = join(folder, 'sound')

function start(data: string) {
  return startServer({ main, data, log: join(folder, 'log'), workers: 1, expireAfter: 3600 })
}

async function send(wire: Wire, method: string, path: string, body?: Buffer, type?: string) {
  const answer = await wire.send({
    method,
    path,
    ...(body === undefined ? {} : { body }),
    ...(type === undefined ? {} : { headers: { 'Content-Type': type } }),
  })
  if (typeof answer === 'string' || answer.reply.status >= 300) throw new Error(`${method} ${path}`)
  return answer.reply
}

async function putManifest(wire: Wire, repository: string, manifest: Manifest): Promise<void> {
  const path = `/v2/${repository}/manifests/${manifest.digest}?tag=latest`
  await send(wire, 'PUT', path, manifest.bytes, manifest.mediaType)
}

t.before(async () => {
  const server = await start(sound)
  const wire = new Wire(server.port)
  for (const [repository, { blobs, manifest }] of [
    ['one', image],
    ['one', signature],
    ['two', image],
  ] as const) {
    for (const blob of blobs) {
      await send(wire, 'POST', `/v2/${repository}/blobs/uploads/?digest=${blob.digest}`, blob.bytes)
    }
    await putManifest(wire, repository, manifest)
  }
  await putManifest(wire, 'one', index)
  await send(wire, 'POST', `/v2/one/blobs/uploads/?digest=${layer.digest}`, layer.bytes)
  const upload = await send(wire, 'POST', '/v2/one/blobs/uploads/')
  await send(wire, 'PATCH', String(upload.headers.location), makeBlob(random).bytes)
  wire.close()
  server.stop()
  await server.gone
})

function fileOf(data: string, digest: string): string {
  const [algorithm = '', name = ''] = digest.split(':')
  return join(data, 'blobs', algorithm, name.slice(0, 2), name)
}

function uploadOf(data: string): string {
  return join(data, 'uploads', readdirSync(join(data, 'uploads'))[0] ?? '')
}

function run(data: string, sql: string): void {
  const db = new Database(join(data, 'boathouse.db'))
  db.pragma('foreign_keys = OFF')
  db.exec(sql)
  db.close()
}

function overwritePage(data: string): void {
  const file = join(data, 'boathouse.db')
  const db = new Database(file, { readonly: true })
  const page = Number(
    db.prepare("SELECT rootpage FROM sqlite_schema WHERE name = 'tag_by_manifest'").pluck().get(),
  )
  const size = Number(db.pragma('page_size', { simple: true }))
  db.close()
  const bytes = readFileSync(file)
  writeFileSync(file, bytes.fill(0, (page - 1) * size, page * size))
}

const damages: Record<string, { readonly does: (data: string) => void; readonly found: RegExp }> = {
  'a byte of a blob turned over': {
    does: (data) => writeFileSync(fileOf(data, layer.digest), 'a lawyer'.slice(0, 7)),
    found: /^I3 .* has other bytes than its name says/,
  },
  'a blob cut short': {
    does: (data) => truncateSync(fileOf(data, layer.digest), 3),
    found: /^I6 blob .* has 3 bytes where its row says 7/,
  },
  'a blob gone': {
    does: (data) => rmSync(fileOf(data, layer.digest)),
    found: /^I6 blob .* has a row, but no file/,
  },
  'a file that nobody claims': {
    does: (data) => writeFileSync(fileOf(data, digestOf(Buffer.from('x'))), 'x'),
    found: /^I6 .* has no row/,
  },
  'a file where no blob can be': {
    does: (data) => writeFileSync(join(data, 'blobs', 'sha256', 'ab', 'half'), 'x'),
    found: /^I3 .* is no place for a blob/,
  },
  'a link gone': {
    does: (data) =>
      run(
        data,
        `DELETE FROM blob_link WHERE blob_id = (SELECT id FROM blob WHERE digest = '${image.manifest.blobs[0]}')`,
      ),
    found: /^I2 manifest one@.* names .*, which is missing/,
  },
  'a link to nothing': {
    does: (data) => run(data, `DELETE FROM blob WHERE digest = '${layer.digest}'`),
    found: /^I6 links without a blob row: 1/,
  },
  'a manifest gone from under its tag': {
    does: (data) => run(data, `DELETE FROM manifest WHERE digest = '${index.digest}'`),
    found: /^I2 tags without a manifest/,
  },
  "a tag on another repository's manifest": {
    does: (data) =>
      run(
        data,
        `UPDATE tag SET manifest_id = (SELECT manifest_id FROM tag t JOIN repository r ON r.id = t.repository_id
         WHERE r.name = 'one') WHERE repository_id = (SELECT id FROM repository WHERE name = 'two')`,
      ),
    found: /^I2 tags without a manifest/,
  },
  'a manifest with other bytes': {
    does: (data) =>
      run(data, `UPDATE manifest SET bytes = CAST(bytes || x'20' AS BLOB) WHERE digest = '${index.digest}'`),
    found: /^I3 manifest one@.* has other bytes/,
  },
  'an edge gone': {
    does: (data) => run(data, `DELETE FROM manifest_child WHERE digest = '${image.manifest.digest}'`),
    found: /^I2 manifest one@.* has other edges than parts/,
  },
  'a child of an index gone': {
    does: (data) =>
      run(
        data,
        `PRAGMA foreign_keys = ON; DELETE FROM manifest WHERE digest = '${image.manifest.digest}'
         AND repository_id = (SELECT id FROM repository WHERE name = 'one')`,
      ),
    found: /^I2 manifest one@.* names .*, which is missing/,
  },
  'a referrer under another subject': {
    does: (data) => run(data, `UPDATE manifest SET subject = NULL WHERE subject IS NOT NULL`),
    found: /^I2 manifest one@.* is listed under another subject/,
  },
  'a wrong sum': {
    does: (data) => run(data, 'UPDATE total SET blob_bytes = blob_bytes + 1'),
    found: /^I10 the index counts/,
  },
  'an upload cut short': {
    does: (data) => truncateSync(uploadOf(data), 1),
    found: /^I6 upload .* has 1 bytes where its row says/,
  },
  'an upload with other bytes': {
    does: (data) => writeFileSync(uploadOf(data), readFileSync(uploadOf(data)).fill(0, 0, 1).fill(1, 1, 2)),
    found: /^I3 upload .* has other bytes/,
  },
  'an upload without its row': {
    does: (data) => run(data, 'DELETE FROM upload'),
    found: /^I6 uploads\/.* has no row/,
  },
  'a turn that nobody can give back': {
    does: (data) => run(data, `UPDATE upload SET holder = 'somebody'`),
    found: /^I9 upload .* is still held/,
  },
  'a page of the index overwritten': {
    does: overwritePage,
    found: /^I7 /,
  },
}

t.test('a folder that a server left in order has no violation', async (t) => {
  t.same(checkFolder(sound, strict).violations, [])
})

for (const [what, { does, found }] of Object.entries(damages)) {
  t.test(`finds ${what}`, async (t) => {
    const data = join(t.testdir(), 'data')
    cpSync(sound, data, { recursive: true })
    does(data)
    const { violations } = checkFolder(data, strict)
    t.ok(
      violations.some((violation) => found.test(violation)),
      violations.join('\n'),
    )
  })
}

t.test('a part that was deleted on purpose is no violation', async (t) => {
  const data = join(t.testdir(), 'data')
  cpSync(sound, data, { recursive: true })
  damages['a child of an index gone']?.does(data)
  const mayBeMissing = (repository: string, digest: string) =>
    repository === 'one' && digest === image.manifest.digest
  t.same(checkFolder(data, { ...strict, mayBeMissing }).violations, [])
})

t.test('a server shows what its folder holds, and every difference is found', async (t) => {
  const data = join(t.testdir(), 'data')
  cpSync(sound, data, { recursive: true })
  const check = checkFolder(data, strict)
  const expectations = expectationsOf(check.index)
  const server = await start(data)
  t.teardown(() => server.killAll())
  const options = { port: server.port, expectations, totals: check.index.totals }
  t.same(await checkServed({ ...options, referrers: referrersOf(check.index) }), [])

  const lost = { kind: 'blob', repository: 'two', name: layer.digest, legal: new Set(['present']) } as const
  t.match(await checkServed({ ...options, expectations: [...expectations, lost] }), [
    /^I1 blob two@.* is absent/,
  ])
  const gone = expectations.map((one) => (one.kind === 'tag' ? { ...one, legal: new Set([undefined]) } : one))
  const undead = await checkServed({ ...options, expectations: gone })
  t.equal(undead.length, 4, 'two tags and two lists')
  for (const violation of undead) t.match(violation, /^I5 /)
  t.match(await checkServed({ ...options, totals: { blobs: 0, bytes: 0 } }), [/^I10 /, /^I10 /])
  t.match(
    await checkServed({
      ...options,
      referrers: [{ repository: 'one', subject: image.manifest.digest, digests: new Set() }],
    }),
    [/^I1 referrers of one@/],
  )
  server.stop()
  t.equal(await server.gone, 0)
})
