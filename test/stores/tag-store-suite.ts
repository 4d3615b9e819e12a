import type { Test } from 'tap'
import { type Digest, digestOf } from '../../src/oci/digest.js'
import { parseReference, parseRepositoryName, parseTag } from '../../src/oci/reference.js'
import type { CollectionStore } from '../../storage/collection-store.js'
import type { MetadataStore, NewManifest } from '../../storage/metadata-store.js'
import type { Restoration, TagStore } from '../../storage/tag-store.js'
import { type NewPlace, openPlace } from './place.js'

/** A tag store beside the metadata whose changes it remembers. */
export interface OpenTagStore {
  readonly tags: TagStore
  readonly metadata: MetadataStore
  readonly collection: CollectionStore
  close(): Promise<void>
}

const now = 1_700_000_000_000
const team = parseRepositoryName('team/app')
const v1 = parseTag('v1')

/** The digest of a text, standing for a manifest or a blob that has it as its content. */
function of(text: string): Digest {
  return digestOf(Buffer.from(text))
}

function manifest(text: string, more: Partial<Omit<NewManifest, 'tags'>> & { tags?: string[] } = {}) {
  const bytes = Buffer.from(text)
  return {
    repository: team,
    digest: digestOf(bytes),
    mediaType: 'application/vnd.oci.image.manifest.v1+json',
    bytes,
    children: [],
    subject: undefined,
    artifactType: undefined,
    annotations: undefined,
    sparse: true,
    immutable: [],
    condition: undefined,
    user: { name: 'alice' },
    now,
    ...more,
    tags: (more.tags ?? []).map(parseTag),
  } satisfies NewManifest
}

/** An index's entry for the manifest of this text. */
function entry(text: string) {
  return { digest: of(text), size: text.length, role: 'manifest' as const, required: true }
}

function restoration(more: Partial<Restoration> = {}): Restoration {
  return {
    repository: team,
    tag: v1,
    to: 'previous',
    immutable: [],
    user: { name: 'root' },
    now: now + 9,
    ...more,
  }
}

/** The history of v1, newest first, in short. */
async function historyOf(tags: TagStore, tag = v1): Promise<string[]> {
  const names = new Map(['a', 'b', 'c', 'd'].map((text) => [of(text), text]))
  const show = (digest: Digest | undefined) => (digest === undefined ? '-' : (names.get(digest) ?? '?'))
  return (await tags.listHistory(team, tag, 100)).map(
    ({ how, user, digest, previous, at }) =>
      `${how} ${show(previous)}>${show(digest)} ${user ?? '?'} +${at - now}`,
  )
}

async function at(metadata: MetadataStore, tag = 'v1'): Promise<Digest | undefined> {
  return (await metadata.findManifestHead(team, parseReference(tag)))?.digest
}

/** What every tag store must do. */
export function testTagStore(t: Test, newPlace: NewPlace<OpenTagStore>): void {
  async function open(t: Test): Promise<OpenTagStore> {
    return (await openPlace(t, newPlace)).open()
  }

  t.test('history: each change of a tag with what, how, who and when; no change is none (R13)', async (t) => {
    const { tags, metadata } = await open(t)
    await metadata.putManifest(manifest('a', { tags: ['v1', 'other'] }))
    await metadata.putManifest(manifest('a', { tags: ['v1'], now: now + 1 }))
    await metadata.putManifest(manifest('b', { tags: ['v1'], user: { name: '' }, now: now + 2 }))
    await metadata.deleteTag(team, v1, { immutable: [], user: { name: 'bob' }, now: now + 3 })
    await metadata.deleteTag(team, v1, { immutable: [], user: { name: 'bob' }, now: now + 4 })
    await metadata.putManifest(manifest('a', { tags: ['v1'], now: now + 5 }))
    await metadata.deleteManifest(team, of('a'), { immutable: [], user: { name: 'carol' }, now: now + 6 })
    t.strictSame(await historyOf(tags), [
      'delete a>- carol +6',
      'push ->a alice +5',
      'delete b>- bob +3',
      'push a>b ? +2',
      'push ->a alice +0',
    ])
    t.strictSame(await historyOf(tags, parseTag('other')), ['delete a>- carol +6', 'push ->a alice +0'])
    t.equal((await tags.listHistory(team, undefined, 100)).length, 7, 'of the whole repository')
    t.equal((await tags.listHistory(team, undefined, 2)).length, 2, 'at most so many')
    t.strictSame(await tags.listHistory(parseRepositoryName('nobody'), undefined, 9), [])
  })

  t.test('history: about a thousand changes of a tag are remembered', async (t) => {
    const { tags, metadata } = await open(t)
    await metadata.putManifest(manifest('c', { tags: ['other'] }))
    const moves = Array.from({ length: 1200 }, (_, move) =>
      metadata.putManifest(manifest(move % 2 === 0 ? 'a' : 'b', { tags: ['v1'], now: now + move })),
    )
    await Promise.all(moves)
    const changes = await tags.listHistory(team, v1, 5000)
    t.ok(changes.length >= 1000 && changes.length < 1060, `${changes.length} are left`)
    t.equal(changes[0]?.at, now + 1199, 'the newest')
    t.equal((await tags.listHistory(team, parseTag('other'), 10)).length, 1, 'of that tag alone')
  })

  t.test('S85: history: the bound holds for each tag of pushes with many', async (t) => {
    const { tags, metadata } = await open(t)
    const names = Array.from({ length: 50 }, (_, number) => `t${number}`)
    const moves = Array.from({ length: 1100 }, (_, move) =>
      metadata.putManifest(manifest(move % 2 === 0 ? 'a' : 'b', { tags: names, now: now + move })),
    )
    await Promise.all(moves)
    for (const name of names) {
      const changes = await tags.listHistory(team, parseTag(name), 5000)
      t.ok(changes.length >= 1000 && changes.length < 1060, `${name}: ${changes.length} are left`)
    }
  })

  t.test('restore: a moved tag, a deleted one, and back again', async (t) => {
    const { tags, metadata } = await open(t)
    t.match(await tags.restoreTag(restoration()), { outcome: 'unknown' }, 'no repository')
    await metadata.putManifest(manifest('a', { tags: ['v1'] }))
    t.match(await tags.restoreTag(restoration()), { outcome: 'new' }, 'nothing was before')
    t.match(
      await tags.restoreTag(restoration({ tag: parseTag('v2') })),
      { outcome: 'unknown' },
      'no such tag',
    )
    await metadata.putManifest(manifest('b', { tags: ['v1'] }))
    t.match(await tags.restoreTag(restoration()), {
      outcome: 'restored',
      digest: of('a'),
      previous: of('b'),
      revived: 0,
    })
    t.equal(await at(metadata), of('a'))
    t.match(await tags.restoreTag(restoration()), { outcome: 'restored', digest: of('b') }, 'undone')
    await metadata.deleteTag(team, v1, { immutable: [], now })
    t.match(await tags.restoreTag(restoration()), { outcome: 'restored', digest: of('b') }, 'deleted')
    t.equal(await at(metadata), of('b'))
    t.equal((await historyOf(tags))[0], 'restore ->b root +9')
  })

  t.test('restore: to an entry of the history, or to any manifest of the repository', async (t) => {
    const { tags, metadata } = await open(t)
    for (const text of ['a', 'b', 'c']) await metadata.putManifest(manifest(text, { tags: ['v1'] }))
    await metadata.deleteTag(team, v1, { immutable: [], now })
    await metadata.putManifest(manifest('d', { tags: ['other'] }))
    const [removal, , b, a] = await tags.listHistory(team, v1, 10)
    const to = (entry = 0) => tags.restoreTag(restoration({ to: { entry } }))
    t.match(await to(a?.entry), { outcome: 'restored', digest: of('a') })
    t.match(await to(b?.entry), { outcome: 'restored', digest: of('b') })
    t.match(await to(b?.entry), { outcome: 'unchanged', digest: of('b') })
    t.match(await to(removal?.entry), { outcome: 'removal' })
    t.match(await to(9999), { outcome: 'no-entry' })
    const [ofOther] = await tags.listHistory(team, parseTag('other'), 1)
    t.match(await to(ofOther?.entry), { outcome: 'no-entry' }, 'an entry of another tag is none')
    const named = await tags.restoreTag(restoration({ tag: parseTag('new'), to: { digest: of('d') } }))
    t.match(named, { outcome: 'restored', digest: of('d'), previous: undefined })
    const never = await tags.restoreTag(restoration({ to: { digest: of('never') } }))
    t.match(never, { outcome: 'gone' })
    t.equal(await at(metadata), of('b'), 'nothing changed')
  })

  t.test('restore: a deleted manifest, with what it lists and what refers to it', async (t) => {
    const { tags, metadata } = await open(t)
    const annotations = JSON.stringify({ purpose: 'a signature' })
    await metadata.putManifest(manifest('leaf'))
    await metadata.putManifest(manifest('inner', { children: [entry('leaf')] }))
    await metadata.putManifest(manifest('a', { children: [entry('inner')], tags: ['v1'] }))
    await metadata.putManifest(
      manifest('signed', { subject: of('leaf'), artifactType: 'application/x', annotations }),
    )
    await metadata.putManifest(manifest('b', { tags: ['v1'] }))
    for (const text of ['leaf', 'inner', 'signed', 'a']) {
      t.match(await metadata.deleteManifest(team, of(text), { immutable: [], now }), { outcome: 'deleted' })
      t.equal(await at(metadata, of(text)), undefined, `${text} is gone for everybody`)
      t.match(await tags.findRemains(team, of(text)), { state: 'deleted', deletedAt: now })
    }
    const most = { count: 10, bytes: 1000 }
    t.strictSame((await metadata.listReferrers(team, of('leaf'), [], 0, most)).referrers, [])
    t.match(await tags.restoreTag(restoration()), { outcome: 'restored', digest: of('a'), revived: 4 })
    for (const text of ['leaf', 'inner', 'signed', 'a']) {
      const found = await metadata.findManifest(team, parseReference(of(text)))
      t.equal(found?.bytes.toString(), text, `${text} is back, byte for byte`)
      t.match(await tags.findRemains(team, of(text)), { state: 'stored' })
    }
    const again = await metadata.listReferrers(team, of('leaf'), ['application/x'], 0, most)
    t.match(again.referrers, [{ annotations: Buffer.from(annotations) }])
    t.match(await tags.findRemains(team, of('never')), { state: 'gone' })
  })

  t.test('restore: what an index lists and was deleted before it lasts as long as it does', async (t) => {
    const { tags, metadata, collection } = await open(t)
    await metadata.putManifest(manifest('leaf'))
    await metadata.putManifest(manifest('inner', { children: [entry('leaf')] }))
    await metadata.putManifest(manifest('a', { children: [entry('inner')], tags: ['v1'] }))
    for (const [day, text] of ['leaf', 'inner', 'a'].entries()) {
      await metadata.deleteManifest(team, of(text), { immutable: [], now: now + day * 1000 })
    }
    await collection.forgetOld({ undo: now + 2000, history: 0 }, 100)
    t.match(await tags.restoreTag(restoration()), { outcome: 'restored', digest: of('a'), revived: 3 })
    t.equal(await at(metadata, of('leaf')), of('leaf'))
    await metadata.deleteManifest(team, of('a'), { immutable: [], now: now + 9000 })
    t.equal(await collection.forgetOld({ undo: now + 9001, history: 0 }, 100), 1, 'and no longer')
  })

  t.test('restore: what a tag points at already is made whole again', async (t) => {
    const { tags, metadata } = await open(t)
    await metadata.putManifest(manifest('leaf'))
    await metadata.putManifest(manifest('a', { children: [entry('leaf')], tags: ['v1'] }))
    await metadata.deleteManifest(team, of('leaf'), { immutable: [], now })
    const whole = await tags.restoreTag(restoration({ to: { digest: of('a') } }))
    t.match(whole, { outcome: 'restored', revived: 1 })
    t.equal(await at(metadata, of('leaf')), of('leaf'))
    t.equal((await historyOf(tags)).length, 1, 'the tag has not changed')
  })

  t.test('restore: a manifest that was deleted, pushed again and deleted again is one', async (t) => {
    const { tags, metadata } = await open(t)
    for (let round = 0; round < 3; round++) {
      await metadata.putManifest(manifest('a', { tags: ['v1'] }))
      await metadata.deleteManifest(team, of('a'), { immutable: [], now: now + round })
    }
    t.match(await tags.findRemains(team, of('a')), { state: 'deleted', deletedAt: now + 2 })
    await metadata.putManifest(manifest('a'))
    t.match(await tags.restoreTag(restoration()), { outcome: 'restored', digest: of('a'), revived: 0 })
  })

  t.test(
    'restore: an immutable tag that is there does not move; one that is not there comes back (S24)',
    async (t) => {
      const { tags, metadata } = await open(t)
      await metadata.putManifest(manifest('a', { tags: ['v1'] }))
      await metadata.putManifest(manifest('b', { tags: ['v1'] }))
      t.match(await tags.restoreTag(restoration({ immutable: ['v*'] })), { outcome: 'immutable' })
      t.equal(await at(metadata), of('b'))
      await metadata.deleteTag(team, v1, { immutable: [], now })
      t.match(await tags.restoreTag(restoration({ immutable: ['v*'] })), { outcome: 'restored' })
      t.equal(await at(metadata), of('b'))
    },
  )

  t.test('facts: tags with their last change and pull, in pages', async (t) => {
    const { tags, metadata } = await open(t)
    await metadata.putManifest(manifest('a', { tags: ['v1', 'v3'] }))
    await metadata.putManifest(manifest('b', { tags: ['v2'], now: now + 5 }))
    await metadata.recordPulls([
      { repository: team, digest: of('a'), tag: v1, at: now + 7 },
      { repository: team, digest: of('b'), tag: undefined, at: now + 8 },
    ])
    const facts = await tags.listTagFacts(team, '', 10)
    t.match(facts, [
      {
        tag: 'v1',
        digest: of('a'),
        pushedAt: now,
        pulledAt: now + 7,
        lastChange: { how: 'push', user: 'alice' },
      },
      { tag: 'v2', digest: of('b'), pushedAt: now + 5, pulledAt: now + 8 },
      { tag: 'v3', digest: of('a'), pulledAt: now + 7 },
    ])
    t.match(await tags.listTagFacts(team, 'v1', 1), [{ tag: 'v2' }])
    t.strictSame(await tags.listTaggedRepositories('', 10), [team])
    t.strictSame(await tags.listTaggedRepositories(team, 10), [])
  })

  t.test('facts: tags above a manifest, through indexes and subjects', async (t) => {
    const { tags, metadata } = await open(t)
    await metadata.putManifest(manifest('leaf', { tags: ['amd64'] }))
    await metadata.putManifest(manifest('a', { children: [entry('leaf')], tags: ['v1'] }))
    await metadata.putManifest(manifest('signed', { subject: of('leaf') }))
    const above = await tags.listTagsAbove(team, of('signed'), 10)
    t.strictSame(above.map(({ tag }) => tag).sort(), ['amd64', 'v1'])
    t.strictSame(await tags.listTagsAbove(team, of('a'), 10), [{ tag: 'v1', digest: of('a') }])
    t.strictSame(await tags.listTagsAbove(team, of('never'), 10), [])
  })

  t.test('removal: tags go as they were found, and no others (R13, S24)', async (t) => {
    const { tags, metadata } = await open(t)
    await metadata.putManifest(manifest('a', { tags: ['v1', 'old', 'moved', 'pulled', 'pushed'] }))
    const facts = await tags.listTagFacts(team, '', 10)
    await metadata.putManifest(manifest('b', { tags: ['moved'], now: now + 1 }))
    await metadata.putManifest(manifest('a', { tags: ['pushed'], now: now + 1 }))
    const change = { immutable: ['v*'], now: now + 2 }
    const removed = await tags.removeTags(
      team,
      facts.filter(({ tag }) => tag !== 'pulled'),
      change,
    )
    t.strictSame(removed, ['old'])
    await metadata.recordPulls([{ repository: team, digest: of('a'), tag: parseTag('pulled'), at: now + 3 }])
    t.strictSame(await tags.removeTags(team, facts, change), [], 'pulled meanwhile')
    t.strictSame((await metadata.listTags(team, '', 10)).names, ['moved', 'pulled', 'pushed', 'v1'])
    t.strictSame(await historyOf(tags, parseTag('old')), ['retention a>- ? +2', 'push ->a alice +0'])
    t.match(await tags.restoreTag(restoration({ tag: parseTag('old') })), { outcome: 'restored' })
  })

  t.test('running: periods, with gaps, and a clock that is set back (R60)', async (t) => {
    const { tags } = await open(t)
    const periods = async () =>
      (await tags.listRunning()).map(({ beganAt, endedAt }) => [beganAt - now, endedAt - now])
    await tags.noteRunning(now, 100)
    await tags.noteRunning(now + 90, 100)
    t.strictSame(await periods(), [[0, 90]])
    await tags.noteRunning(now + 5000, 100)
    await tags.noteRunning(now + 5050, 100)
    const both = [
      [5000, 5050],
      [0, 90],
    ]
    t.strictSame(await periods(), both)
    await tags.noteRunning(now + 95, 100)
    t.strictSame(await periods(), [[0, 95]], 'the future has not been')
    await tags.noteRunning(now - 400, 100)
    t.strictSame(await periods(), [[-400, -400]], 'nor has this')
    for (let at = 0; at < 130; at++) await tags.noteRunning(now + at * 1000, 100)
    t.equal((await periods()).length, 100, 'so many are remembered')
  })

  t.test('reopening: history and deleted manifests are there', async (t) => {
    const place = await openPlace(t, newPlace)
    const first = await place.open()
    await first.metadata.putManifest(manifest('a', { tags: ['v1'] }))
    await first.metadata.deleteManifest(team, of('a'), { immutable: [], now })
    await place.close(first)
    const second = await place.open()
    t.equal((await second.tags.listHistory(team, v1, 10)).length, 2)
    t.match(await second.tags.restoreTag(restoration()), { outcome: 'restored', revived: 1 })
  })
}
