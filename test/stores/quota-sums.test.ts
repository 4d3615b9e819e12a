import { join } from 'node:path'
import Database from 'better-sqlite3'
import t, { type Test } from 'tap'
import { type Digest, digestOf } from '../../src/oci/digest.js'
import { parseRepositoryName, parseTag } from '../../src/oci/reference.js'
import { matchesRepository, parseRepositoryPattern } from '../../src/oci/repository-pattern.js'
import type { NewManifest } from '../../storage/metadata-store.js'
import { entrySizes, type Quota } from '../../storage/quota-store.js'
import { openSqliteStores, prepareSqlite, type SqliteStores } from '../../storage/sqlite-metadata-store.js'
import { scratchDir } from '../harness.js'

/*
 * Quotas are sums that triggers keep. Here the index lives through random work of every kind, and after each step the
 * sums are compared with what a look at all rows finds. More of it: node dist/test/stores/quota-sums.test.js --steps 100000
 */

const asked = process.argv.indexOf('--steps')
const steps = asked < 0 ? 800 : Number(process.argv[asked + 1])
t.setTimeout(600_000)

const names = ['team/a', 'team/b', 'team/b/deep', 'other'].map(parseRepositoryName)
const mirrored = ['mirror/x', 'team/m'].map(parseRepositoryName)
const tags = ['v1', 'v2', 'v3'].map(parseTag)
const texts = ['a', 'bb', 'cccc', 'dddddddd']
const plenty = 1_000_000_000

interface Random {
  (below: number): number
  pick<T>(from: readonly T[]): T
}

/** Numbers that a seed gives again. */
function randomFrom(seed: number): Random {
  let state = seed
  const next = (below: number) => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0
    return Math.floor((state / 2 ** 32) * below)
  }
  const pick = <T>(from: readonly T[]): T => {
    const one = from[next(from.length)]
    if (one === undefined) throw new Error('there is nothing to pick from')
    return one
  }
  return Object.assign(next, { pick })
}

function manifestOf(repository: NewManifest['repository'], random: Random, now: number): NewManifest {
  const parts = texts.filter(() => random(2) === 0)
  const salt = random(3)
  const bytes = Buffer.from(JSON.stringify({ parts, salt }))
  const listed = random(4) === 0 ? [{ digest: digestOf(Buffer.from('{"parts":[],"salt":0}')), size: 21 }] : []
  return {
    repository,
    digest: digestOf(bytes),
    mediaType: 'application/vnd.oci.image.manifest.v1+json',
    bytes,
    children: [
      ...parts.map((text) => ({
        digest: digestOf(Buffer.from(text)),
        size: text.length,
        role: 'blob' as const,
        required: true,
      })),
      ...listed.map((one) => ({ ...one, role: 'manifest' as const, required: true })),
    ],
    subject: undefined,
    artifactType: undefined,
    annotations: undefined,
    tags: tags.filter(() => random(3) === 0),
    sparse: true,
    immutable: [],
    condition: undefined,
    now,
  }
}

/** One step of random work; times go on by themselves. */
function prepareWork({ metadata, collection, tags: history, quotas, mirrors }: SqliteStores, random: Random) {
  let now = 1_700_000_000_000
  let count = 0
  const holder = 'collector'
  const digests = texts.map((text) => digestOf(Buffer.from(text)))
  const deletion = () => ({ immutable: [], now })
  const moments = () => ({ before: now - random(20), undo: now - random(20) })

  async function upload(text: string, isWhole: boolean): Promise<void> {
    const id = `upload-${count++}`
    const digest = digestOf(Buffer.from(text))
    const repository = random.pick([...names, ...mirrored])
    await metadata.startUpload({ id, repository, owner: '', algorithm: 'sha256' }, plenty, now)
    if (typeof (await metadata.takeTurn(id, 'me', digest)) !== 'object') return
    await quotas.reserve(id, 'me', text.length + random(50))
    if (isWhole) await metadata.finishUpload(id, 'me', { digest, size: text.length }, now)
    else await metadata.saveProgress(id, 'me', { offset: random(30), digest: undefined }, now)
    if (random(3) === 0) await metadata.removeUpload(id, undefined)
  }

  async function collect(): Promise<void> {
    const { undo, before } = moments()
    await collection.forgetOld({ undo, history: undo }, random(10))
    const idle = await collection.listIdleManifests(0, before, 100)
    await collection.removeManifests(
      idle.items.map(({ id }) => id),
      { before, undo },
    )
    const links = await collection.listIdleLinks(undefined, { before, undo }, 100)
    await collection.removeLinks(links.items, { before, undo })
    await condemn({ before, undo })
  }

  async function condemn(when: { before: number; undo: number }): Promise<void> {
    const { items } = await collection.condemnBlobs(digests, holder, when)
    if (random(4) === 0) return
    await collection.forgetBlobs(
      items.map(({ digest }) => digest),
      holder,
    )
  }

  const work: Record<string, () => Promise<unknown>> = {
    push: () => upload(random.pick(texts), true),
    open: () => upload(random.pick(texts), false),
    mount: () => metadata.mountBlob(random.pick(names), random.pick(digests), random.pick(names), now),
    unlink: () => metadata.unlinkBlob(random.pick(names), random.pick(digests)),
    manifest: () => metadata.putManifest(manifestOf(random.pick(names), random, now)),
    again: () => metadata.putManifest(manifestOf(random.pick(names), random, now)),
    untag: () => metadata.deleteTag(random.pick(names), random.pick(tags), deletion()),
    delete: () =>
      metadata.deleteManifest(
        random.pick(names),
        manifestOf(random.pick(names), random, now).digest,
        deletion(),
      ),
    restore: () =>
      history.restoreTag({
        repository: random.pick(names),
        tag: random.pick(tags),
        to:
          random(2) === 0
            ? 'previous'
            : { digest: manifestOf(random.pick(names), random, now).digest as Digest },
        immutable: [],
        user: undefined,
        now,
      }),
    retain: async () => {
      const repository = random.pick(names)
      const facts = await history.listTagFacts(repository, '', 2)
      await history.removeTags(repository, facts, { immutable: [], now })
    },
    collect,
    claim: async () => {
      await collection.claimCondemned(holder, 10)
      await collection.forgetBlobs(digests, holder)
    },
    giveUp: () => collection.forgetDeleted(random.pick(names), 1 + random(3)),
    expire: () => metadata.expireUploads(now - random(10), 5),
    dead: () => metadata.releaseTurns('m'),
    mirror: async () => {
      const repository = random.pick(mirrored)
      await mirrors.putMirrored(manifestOf(repository, random, now), 'm')
      await mirrors.linkMirrored(repository, random.pick(digests), 'm', now)
    },
    fill: async () => {
      const id = `fill-${random(3)}`
      const repository = random.pick(mirrored)
      const digest = random.pick(digests)
      const fill = { id, repository, digest, owner: '', algorithm: 'sha256' as const, mirror: 'm' }
      if (typeof (await mirrors.takeFill(fill, 'me', now)) !== 'object') return
      await metadata.saveProgress(id, 'me', { offset: random(100), digest: undefined }, now)
    },
    evict: () => mirrors.evict('m', [random.pick(digests)]),
    quotas: () => quotas.setQuotas(quotasOf(random)),
  }
  return async (): Promise<string> => {
    now += random(5)
    const name = random.pick(Object.keys(work))
    await work[name]?.()
    return name
  }
}

function quotasOf(random: Random): Quota[] {
  const patterns = ['**', 'team/**', 'team/b', 'mirror/**']
  return patterns.filter(() => random(3) > 0).map((pattern) => ({ pattern, limit: 1000 + random(plenty) }))
}

interface Row {
  readonly repository: string
  readonly size: number
}

/** What each quota should say, and what is wrong with the blobs that wait, from a look at all rows. */
function lookAtAll(db: Database.Database) {
  const rows = (sql: string) => db.prepare<[], Row>(sql).all()
  const own = (table: string, size: string) =>
    rows(
      `SELECT r.name AS repository, ${size} AS size FROM ${table} x JOIN repository r ON r.id = x.repository_id`,
    )
  const links = rows(
    `SELECT r.name AS repository, b.size FROM blob_link l JOIN repository r ON r.id = l.repository_id
     JOIN blob b ON b.id = l.blob_id`,
  )
  const left = rows('SELECT repository, size FROM waiting_blob')
  const [manifests, deleted] = [own('manifest', 'x.size'), own('deleted_manifest', 'x.size')]
  const uploads = rows('SELECT repository, max(offset, reserved) AS size FROM upload')
  const isMirrors = new Set(
    db.prepare<[], string>('SELECT name FROM repository WHERE mirror IS NOT NULL').pluck().all(),
  )
  const sum = (pattern: string, all: readonly Row[], size = (row: Row) => row.size) => {
    const parsed = parseRepositoryPattern(pattern)
    return all
      .filter(({ repository }) => matchesRepository(parsed, parseRepositoryName(repository)))
      .filter(({ repository }) => !isMirrors.has(repository))
      .reduce((bytes, row) => bytes + size(row), 0)
  }
  const entries: [readonly Row[], number][] = [
    [[...links, ...left], entrySizes.blob],
    [[...manifests, ...deleted], entrySizes.manifest],
    [own('tag', '0'), entrySizes.tag],
    [own('tag_history', '0'), entrySizes.change],
    [uploads, entrySizes.upload],
  ]
  return (pattern: string) => ({
    pattern,
    used: sum(pattern, [...links, ...left, ...manifests, ...deleted, ...uploads]),
    waiting: sum(pattern, [...left, ...deleted]),
    overhead: entries.reduce((bytes, [all, each]) => bytes + sum(pattern, all, () => each), 0),
  })
}

/** Questions about blobs that wait; each counts rows that must not be there. */
const wrong = {
  'a blob waits where it is linked': `SELECT count(*) FROM waiting_blob w JOIN repository r ON r.name = w.repository
    JOIN blob_link l ON l.repository_id = r.id AND l.blob_id = w.blob_id`,
  'what a deleted manifest needs counts nowhere': `SELECT count(*) FROM deleted_child c
    JOIN repository r ON r.id = c.repository_id JOIN blob b ON b.digest = c.digest
    WHERE c.is_linked = 1
      AND NOT EXISTS (SELECT 1 FROM blob_link l WHERE l.repository_id = r.id AND l.blob_id = b.id)
      AND NOT EXISTS (SELECT 1 FROM waiting_blob w WHERE w.repository = r.name AND w.blob_id = b.id)`,
  'a blob waits for nothing': `SELECT count(*) FROM waiting_blob w JOIN blob b ON b.id = w.blob_id
    WHERE NOT EXISTS (SELECT 1 FROM deleted_child c JOIN repository r ON r.id = c.repository_id
        WHERE c.digest = b.digest AND r.name = w.repository AND c.is_linked = 1)
      AND (EXISTS (SELECT 1 FROM blob_link l WHERE l.blob_id = b.id)
        OR EXISTS (SELECT 1 FROM waiting_blob o WHERE o.blob_id = b.id AND o.repository <> w.repository))`,
}

t.test(
  'S80, S81, S101: after any work quotas say what there is, and nothing on the disk is free',
  async (t) => {
    const seed = Number(process.env.SEED ?? 20_261)
    for (const [number, length] of [steps, Math.ceil(steps / 2)].entries()) {
      await t.test(`from seed ${seed + number}`, (t) => liveThrough(t, seed + number, length))
    }
  },
)

async function liveThrough(t: Test, seed: number, length: number) {
  const path = join(scratchDir(t), 'boathouse.db')
  prepareSqlite(path)
  const stores = await openSqliteStores({ path, onFatal: (error) => t.fail(error) })
  const db = new Database(path, { readonly: true })
  t.teardown(async () => {
    db.close()
    await stores.metadata.close()
  })
  const random = randomFrom(seed)
  const step = prepareWork(stores, random)
  await stores.quotas.setQuotas([{ pattern: '**', limit: plenty }])
  const free = db
    .prepare<[], Digest>(
      `SELECT digest FROM blob b WHERE NOT EXISTS (SELECT 1 FROM blob_link WHERE blob_id = b.id)
       AND NOT EXISTS (SELECT 1 FROM waiting_blob WHERE blob_id = b.id)`,
    )
    .pluck()
  /** What a mirror linked last is nobody's when it was evicted. */
  const mirrors = db
    .prepare<[], Digest>('SELECT b.digest FROM mirror_blob m JOIN blob b ON b.id = m.blob_id')
    .pluck()
  let ofMirrors = new Set<Digest>()
  const done: string[] = []
  const faults: string[] = []
  let most = 0
  for (let number = 0; number < length && faults.length === 0; number++) {
    const name = await step()
    done.push(name)
    const expected = lookAtAll(db)
    for (const { limit: _limit, ...use } of await stores.quotas.listQuotas()) {
      const should = expected(use.pattern)
      most = Math.max(most, use.waiting)
      if (JSON.stringify(use) === JSON.stringify(should)) continue
      faults.push(`${JSON.stringify(use)} should be ${JSON.stringify(should)}`)
    }
    for (const [what, sql] of Object.entries(wrong)) {
      if (Number(db.prepare(sql).pluck().get()) > 0) faults.push(what)
    }
    for (const digest of free.all()) {
      if (!ofMirrors.has(digest)) faults.push(`${digest} is on the disk and counts nowhere`)
    }
    ofMirrors = new Set([...[...ofMirrors].filter((digest) => free.all().includes(digest)), ...mirrors.all()])
    if (faults.length > 0) faults.push(`step ${number}: ${done.slice(-8).join(', ')}`)
  }
  t.strictSame(faults, [])
  t.ok(most > 0, 'something waited meanwhile')
  t.ok(new Set(done).size > 15, 'all kinds of work were done')
}
