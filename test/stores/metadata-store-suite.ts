import type { Test } from 'tap'
import { type Digest, digestOf } from '../../src/oci/digest.js'
import type { Child } from '../../src/oci/manifest.js'
import {
  parseReference,
  parseRepositoryName,
  parseTag,
  type RepositoryName,
} from '../../src/oci/reference.js'
import type {
  Condition,
  DeleteResult,
  MetadataStore,
  NewManifest,
  Page,
  PutManifestResult,
} from '../../storage/metadata-store.js'
import { type NewPlace, openPlace } from './place.js'

const now = 1_700_000_000_000
const ociManifest = 'application/vnd.oci.image.manifest.v1+json'
const team = parseRepositoryName('team/app')
const other = parseRepositoryName('other/app')

let lastId = 0

/** An id that no other test uses. */
function newId(): string {
  lastId++
  return `upload-${lastId}`
}

/** The digest of a text, standing for a blob that has it as its content. */
function of(text: string): Digest {
  return digestOf(Buffer.from(text))
}

async function startUpload(store: MetadataStore, repository = team, at = now, id = newId()): Promise<string> {
  await store.startUpload({ id, repository, owner: '', algorithm: 'sha256' }, 1_000_000, at)
  return id
}

/** Records a blob in a repository, as a finished upload does. */
async function addBlob(
  store: MetadataStore,
  repository: RepositoryName,
  digest: Digest,
  size = 10,
): Promise<void> {
  const id = await startUpload(store, repository)
  await store.takeTurn(id, 'pusher', digest)
  await store.finishUpload(id, 'pusher', { digest, size }, now)
}

/** A manifest of this text with nothing in it, but for what the test cares about. */
function manifest(
  text: string,
  more: Partial<Omit<NewManifest, 'tags'>> & { tags?: string[] } = {},
): NewManifest {
  const bytes = more.bytes ?? Buffer.from(text)
  return {
    repository: team,
    digest: digestOf(bytes),
    mediaType: ociManifest,
    bytes,
    children: [],
    subject: undefined,
    artifactType: undefined,
    annotations: undefined,
    sparse: false,
    immutable: [],
    condition: undefined,
    now,
    ...more,
    tags: (more.tags ?? []).map(parseTag),
  }
}

function child(digest: Digest, more: Partial<Child> = {}): Child {
  return { digest, size: 10, role: 'blob', required: true, ...more }
}

/** Deletes a tag; says what became of it, and of which tag where one is in the way. */
async function deleteTag(
  store: MetadataStore,
  repository: RepositoryName,
  tag: string,
  immutable: string[] = [],
): Promise<string> {
  return told(await store.deleteTag(repository, parseTag(tag), { immutable, now }))
}

/** Deletes a manifest; says the same. */
async function deleteManifest(
  store: MetadataStore,
  repository: RepositoryName,
  digest: Digest,
  immutable: string[] = [],
): Promise<string> {
  return told(await store.deleteManifest(repository, digest, { immutable, now }))
}

function told(result: DeleteResult): string {
  return result.outcome === 'immutable' ? `immutable: ${result.tag}` : result.outcome
}

/** The digest that a tag points at. */
async function tagged(store: MetadataStore, tag: string, repository = team): Promise<Digest | undefined> {
  return (await store.findManifestHead(repository, parseReference(tag)))?.digest
}

async function tagsOf(store: MetadataStore, repository = team): Promise<readonly string[]> {
  return (await store.listTags(repository, '', 1000)).names
}

/** All names of a list, read in pages of this length; each page is checked by itself. */
async function walk(t: Test, limit: number, list: (after: string) => Promise<Page>): Promise<string[]> {
  const names: string[] = []
  for (;;) {
    const page = await list(names.at(-1) ?? '')
    names.push(...page.names)
    if (!page.more) return names
    if (page.names.length !== limit) {
      t.fail(`a page of ${limit} with more to follow has ${page.names.length}`)
      return names
    }
  }
}

/** Names in the order of their bytes. */
function byBytes(names: readonly string[]): string[] {
  return [...names].sort((one, other) => Buffer.compare(Buffer.from(one), Buffer.from(other)))
}

/**
 * What every driver of {@link MetadataStore} must do, as its docstrings promise it. Registers one test per
 * promise.
 * @param newPlace makes a fresh place; stores opened on it one after another or at once are one store
 */
export function testMetadataStore(t: Test, newPlace: NewPlace<MetadataStore>): void {
  testBlobs(t, newPlace)
  testSessions(t, newPlace)
  testTurns(t, newPlace)
  testExpiry(t, newPlace)
  testManifests(t, newPlace)
  testChildren(t, newPlace)
  testConditions(t, newPlace)
  testDeletes(t, newPlace)
  testImmutableTags(t, newPlace)
  testLists(t, newPlace)
  testReferrers(t, newPlace)
  testTogether(t, newPlace)
}

function testBlobs(t: Test, newPlace: NewPlace<MetadataStore>): void {
  t.test('blobs: a repository sees those that it links, and no other', async (t) => {
    const store = await (await openPlace(t, newPlace)).open()
    t.equal(await store.findBlob(team, of('a')), undefined, 'none at first')
    await addBlob(store, team, of('a'), 1_099_511_627_776)
    await addBlob(store, team, of('empty'), 0)
    await addBlob(store, team, digestOf(Buffer.from('a'), 'sha512'), 7)
    t.equal(await store.findBlob(team, of('a')), 1_099_511_627_776, 'a size beyond 32 bits')
    t.equal(await store.findBlob(team, of('empty')), 0, 'a size of nothing')
    t.equal(await store.findBlob(team, digestOf(Buffer.from('a'), 'sha512')), 7, 'a sha512 digest')
    t.equal(await store.findBlob(other, of('a')), undefined, 'not another repository')
    t.equal(await store.findBlob(parseRepositoryName('team'), of('a')), undefined, 'not the one above')
  })

  t.test('blobs: who links a blob, at most so many', async (t) => {
    const store = await (await openPlace(t, newPlace)).open()
    t.strictSame(await store.listBlobRepositories(of('a'), 10), [], 'nobody at first')
    const names = ['a', 'b', 'c/d'].map(parseRepositoryName)
    for (const name of names) await addBlob(store, name, of('a'))
    await addBlob(store, team, of('another'))
    t.strictSame((await store.listBlobRepositories(of('a'), 10)).sort(), names, 'all who do')
    const two = await store.listBlobRepositories(of('a'), 2)
    t.equal(two.length, 2, 'not more than the limit')
    t.ok(
      two.every((name) => names.includes(name)),
      'and some of them',
    )
  })

  t.test('blobs: a mount gives the right to a blob that the other repository has', async (t) => {
    const store = await (await openPlace(t, newPlace)).open()
    await addBlob(store, team, of('a'), 42)
    t.equal(await store.mountBlob(other, of('a'), team, now), true, 'from who has it')
    t.equal(await store.findBlob(other, of('a')), 42, 'with its size')
    t.equal(await store.mountBlob(other, of('a'), team, now), true, 'again')
    t.equal(await store.mountBlob(team, of('a'), team, now), true, 'from itself')
    const third = parseRepositoryName('third')
    t.equal(await store.mountBlob(third, of('b'), team, now), false, 'an unknown blob')
    t.equal(await store.mountBlob(third, of('a'), parseRepositoryName('nobody'), now), false, 'from nobody')
    await store.unlinkBlob(team, of('a'))
    t.equal(await store.mountBlob(third, of('a'), team, now), false, 'from who has it no more')
    t.equal(await store.findBlob(third, of('a')), undefined, 'a failed mount gives nothing')
    t.equal(await store.findBlob(other, of('a')), 42, 'what was mounted does not hang on its source')
    t.equal((await store.totals()).blobs, 1, 'it is one blob all the while')
  })

  t.test(
    'blobs: unlinking takes one repository’s right, unless a manifest of it needs the blob',
    async (t) => {
      const store = await (await openPlace(t, newPlace)).open()
      for (const name of ['a', 'layer', 'cache']) await addBlob(store, team, of(name))
      await addBlob(store, other, of('layer'))
      t.equal(await store.unlinkBlob(team, of('never')), 'unknown', 'a blob that nobody has')
      t.equal(await store.unlinkBlob(other, of('a')), 'unknown', 'a blob that another repository has')
      t.equal(await store.unlinkBlob(parseRepositoryName('nobody'), of('a')), 'unknown', 'no such repository')
      t.equal(await store.unlinkBlob(team, of('a')), 'unlinked', 'a blob that nothing needs')
      t.equal(await store.unlinkBlob(team, of('a')), 'unknown', 'again')
      t.equal(await store.findBlob(team, of('a')), undefined, 'it is gone')

      await store.putManifest(manifest('image', { children: [child(of('layer'))] }))
      await store.putManifest(manifest('index', { children: [child(of('cache'), { role: 'manifest' })] }))
      t.equal(await store.unlinkBlob(team, of('layer')), 'in-use', 'a layer of a manifest')
      t.equal(await store.unlinkBlob(team, of('cache')), 'in-use', 'a blob that an index names')
      t.equal(await store.findBlob(team, of('layer')), 10, 'it stays')
      t.equal(
        await store.unlinkBlob(other, of('layer')),
        'unlinked',
        'where no manifest of that repository needs it',
      )
      await deleteManifest(store, team, of('image'))
      t.equal(await store.unlinkBlob(team, of('layer')), 'unlinked', 'after its manifest has gone')
    },
  )
}

function testSessions(t: Test, newPlace: NewPlace<MetadataStore>): void {
  t.test('sessions: one is found as it was opened', async (t) => {
    const store = await (await openPlace(t, newPlace)).open()
    const owners = ['', 'anna', "O'Brien; DROP TABLE upload --", 'Ünïcödé 🚢', ' ']
    for (const owner of owners) {
      const opened = { id: newId(), repository: other, owner, algorithm: 'sha512' as const }
      t.equal(await store.startUpload(opened, 100, now), true)
      const expected = { ...opened, offset: 0, digest: undefined }
      t.strictSame(await store.findUpload(opened.id), expected, `the owner ${JSON.stringify(owner)}`)
    }
    t.equal(await store.findUpload('never'), undefined, 'no other')
    t.equal(await store.hasRepository(other), false, 'a session makes no repository')
  })

  t.test('sessions: so many in one repository, and no more', async (t) => {
    const place = await openPlace(t, newPlace)
    const [one, two] = [await place.open(), await place.open()]
    const start = (store: MetadataStore, repository = team) =>
      store.startUpload({ id: newId(), repository, owner: '', algorithm: 'sha256' }, 10, now)
    const tries = Array.from({ length: 60 }, (_, number) => start(number % 2 === 0 ? one : two))
    const opened = (await Promise.all(tries)).filter((isOpen) => isOpen)
    t.equal(opened.length, 10, 'sixty at once open ten')
    t.equal((await one.totals()).openUploads, 10, 'and no more are there')
    t.equal(await start(two), false, 'one more is refused')
    t.equal(await start(two, other), true, 'another repository has its own')
  })

  t.test('S100: sessions that nobody uses give way: of their source, or of whoever has most', async (t) => {
    const store = await (await openPlace(t, newPlace)).open()
    const start = (id: string, source: string, at: number, repository = team) =>
      store.startUpload({ id, repository, owner: '', source, algorithm: 'sha256' }, 6, at, 4)
    t.equal(await start('fill', '', 1), true, 'what belongs to nobody')
    for (const [at, id] of ['m1', 'm2', 'm3', 'm4'].entries()) t.equal(await start(id, 'many', 10 + at), true)
    t.equal(await start('m5', 'many', 20, other), 'source-full', 'no fifth, be it elsewhere')
    t.equal(await start('f1', 'few', 5), true, 'others have their own')
    t.equal(await start('f2', 'few', 21), false, 'until the repository is full')
    await store.takeTurn('m1', 'writer')
    const end = (by: Parameters<MetadataStore['endIdleUpload']>[0], before: number) =>
      store.endIdleUpload(by, before)
    t.equal(await end({ source: 'many' }, 11), undefined, 'none that was used since, or is being written')
    t.equal(await end({ source: 'many' }, 13), 'm2', 'the oldest of the source')
    t.equal(await end({ source: '' }, 100), undefined, 'what belongs to nobody stays')
    t.equal(await end({ repository: team }, 100), 'm3', 'of whoever has most, though another is older')
    t.equal(await end({ repository: other }, 100), undefined, 'none in another repository')
    const left = (await store.listUploads('', 10)).map(({ id, isBusy }) => `${id} ${isBusy}`)
    t.strictSame(left, ['f1 false', 'fill false', 'm1 true', 'm4 false'])
    t.strictSame(
      (await store.listUploads('fill', 1)).map(({ id }) => id),
      ['m1'],
      'page by page',
    )
    t.equal(await store.cancelUpload('m1'), true, 'whoever is writing to it')
    t.equal(await store.cancelUpload('m1'), false, 'once')
    t.equal(await store.saveProgress('m1', 'writer', { offset: 1, digest: of('x') }, now), false)
  })

  t.test('sessions: an ended one makes room for another', async (t) => {
    const store = await (await openPlace(t, newPlace)).open()
    const start = (id: string) =>
      store.startUpload({ id, repository: team, owner: '', algorithm: 'sha256' }, 1, now)
    t.equal(await start('finished'), true, 'the first')
    t.equal(await start('x'), false, 'no second')
    await store.takeTurn('finished', 'me', of('a'))
    await store.finishUpload('finished', 'me', { digest: of('a'), size: 1 }, now)
    t.equal(await start('removed'), true, 'after the first was finished')
    await store.removeUpload('removed', undefined)
    t.equal(await start('expired'), true, 'after the next was removed')
    await store.expireUploads(now + 1, 10)
    t.equal(await start('x'), true, 'after that one expired')
  })

  t.test(
    'sessions: finishing one records its blob and ends it, for the holder of its turn alone',
    async (t) => {
      const store = await (await openPlace(t, newPlace)).open()
      const blob = { digest: of('a'), size: 123 }
      const id = await startUpload(store)
      t.equal(await store.finishUpload(id, 'me', blob, now), false, 'not without the turn')
      await store.takeTurn(id, 'me', blob.digest)
      t.equal(await store.finishUpload(id, 'you', blob, now), false, 'not by somebody else')
      t.equal(await store.finishUpload('never', 'me', blob, now), false, 'not one that is not there')
      t.equal(await store.findBlob(team, blob.digest), undefined, 'nothing is recorded by these')
      t.equal((await store.totals()).blobs, 0, 'not anywhere')
      t.not(await store.findUpload(id), undefined, 'and the session goes on')
      t.equal(await store.finishUpload(id, 'me', blob, now), true, 'by the holder')
      t.equal(await store.findBlob(team, blob.digest), 123, 'the blob is linked')
      t.equal(await store.findUpload(id), undefined, 'the session is over')
      t.equal(await store.finishUpload(id, 'me', blob, now), false, 'it cannot be finished again')
    },
  )

  t.test('sessions: fifty finished with one digest at once are one blob', async (t) => {
    const place = await openPlace(t, newPlace)
    const stores = [await place.open(), await place.open()] as const
    const ids = await Promise.all(
      Array.from({ length: 50 }, (_, number) =>
        startUpload(stores[0], parseRepositoryName(`team-${number % 25}`)),
      ),
    )
    await Promise.all(ids.map((id) => stores[0].takeTurn(id, id, of('a'))))
    const blob = { digest: of('a'), size: 5 }
    const finished = await Promise.all(
      ids.map((id, number) => (stores[number % 2] ?? stores[0]).finishUpload(id, id, blob, now)),
    )
    t.ok(
      finished.every((isFinished) => isFinished),
      'all succeed',
    )
    t.match(await stores[0].totals(), { blobs: 1, blobBytes: 5, openUploads: 0 }, 'one blob is there')
    t.equal((await stores[1].listBlobRepositories(blob.digest, 100)).length, 25, 'every repository links it')
  })

  t.test('sessions: one finished many times at once is finished once', async (t) => {
    const place = await openPlace(t, newPlace)
    const stores = [await place.open(), await place.open()] as const
    const id = await startUpload(stores[0])
    await stores[0].takeTurn(id, 'me', of('a'))
    const tries = Array.from({ length: 20 }, (_, number) =>
      (stores[number % 2] ?? stores[0]).finishUpload(id, 'me', { digest: of('a'), size: 1 }, now),
    )
    t.equal((await Promise.all(tries)).filter((isFinished) => isFinished).length, 1, 'once')
    t.equal((await stores[0].totals()).blobs, 1, 'with one blob')
  })

  t.test('sessions: removing one, free or by the holder of its turn', async (t) => {
    const store = await (await openPlace(t, newPlace)).open()
    const [free, held] = [await startUpload(store), await startUpload(store)]
    await store.takeTurn(held, 'me')
    t.equal(await store.removeUpload('never', undefined), false, 'one that is not there')
    t.equal(await store.removeUpload('never', 'me'), false, 'one that is not there, with a holder')
    t.equal(await store.removeUpload(held, undefined), false, 'one whose turn is taken')
    t.equal(await store.removeUpload(held, 'you'), false, 'one whose turn somebody else has')
    t.not(await store.findUpload(held), undefined, 'it goes on')
    t.equal(await store.removeUpload(held, 'me'), true, 'one’s own')
    t.equal(await store.removeUpload(free, undefined), true, 'a free one')
    t.strictSame([await store.findUpload(held), await store.findUpload(free)], [undefined, undefined], 'gone')
    t.equal(await store.removeUpload(free, undefined), false, 'again')
  })
}

function testTurns(t: Test, newPlace: NewPlace<MetadataStore>): void {
  t.test('turns: one holder at a time, who is told where the upload stands', async (t) => {
    const store = await (await openPlace(t, newPlace)).open()
    const id = await startUpload(store)
    t.equal(await store.takeTurn('never', 'me'), 'unknown', 'no such upload')
    t.strictSame(
      await store.takeTurn(id, 'me'),
      { id, repository: team, owner: '', algorithm: 'sha256', offset: 0, digest: undefined },
      'a free turn',
    )
    t.equal(await store.takeTurn(id, 'you'), 'busy', 'a taken one')
    await store.releaseTurn(id, 'you')
    t.equal(await store.takeTurn(id, 'you'), 'busy', 'nobody gives back another’s turn')
    await store.releaseTurn(id, 'me')
    t.match(await store.takeTurn(id, 'you'), { id }, 'a turn that was given back')
    await store.releaseTurn('never', 'me')
    await store.removeUpload(id, 'you')
    t.equal(await store.takeTurn(id, 'me'), 'unknown', 'an upload that is over')
  })

  t.test('turns: of a hundred who ask at once exactly one gets it', async (t) => {
    const place = await openPlace(t, newPlace)
    const stores = [await place.open(), await place.open()] as const
    for (let round = 0; round < 5; round++) {
      const id = await startUpload(stores[0])
      const answers = await Promise.all(
        Array.from({ length: 100 }, (_, number) =>
          (stores[number % 2] ?? stores[0]).takeTurn(id, `${number}`),
        ),
      )
      t.equal(answers.filter((answer) => typeof answer === 'object').length, 1, `round ${round}: one has it`)
      t.equal(answers.filter((answer) => answer === 'busy').length, 99, `round ${round}: the others wait`)
    }
  })

  t.test('turns: progress is recorded for the holder alone, and gives the turn back', async (t) => {
    const store = await (await openPlace(t, newPlace)).open()
    const id = await startUpload(store)
    const progress = { offset: 3_000_000_000, digest: of('so far') }
    t.equal(await store.saveProgress(id, 'me', progress, now), false, 'not without the turn')
    await store.takeTurn(id, 'me')
    t.equal(await store.saveProgress(id, 'you', progress, now), false, 'not by somebody else')
    t.equal(await store.saveProgress('never', 'me', progress, now), false, 'not where there is no upload')
    t.match(await store.findUpload(id), { offset: 0, digest: undefined }, 'nothing was changed by these')
    t.equal(await store.takeTurn(id, 'you'), 'busy', 'nor was the turn')
    t.equal(await store.saveProgress(id, 'me', progress, now), true, 'by the holder')
    t.match(await store.findUpload(id), progress, 'it is recorded')
    t.match(await store.takeTurn(id, 'you'), progress, 'the turn is free, and the next is told')
    t.equal(await store.saveProgress(id, 'me', { offset: 0, digest: undefined }, now), false, 'once per turn')
    await store.saveProgress(id, 'you', { offset: 5, digest: undefined }, now)
    t.match(await store.findUpload(id), { offset: 5, digest: undefined }, 'a digest may become unknown')
    await store.takeTurn(id, 'me')
    await store.releaseTurn(id, 'me')
    t.match(await store.findUpload(id), { offset: 5 }, 'a turn given back changes nothing')
  })

  t.test('turns: those of dead holders are given back by the beginning of their names', async (t) => {
    const place = await openPlace(t, newPlace)
    const [one, two] = [await place.open(), await place.open()]
    const holders = ['w1:a', 'w1:b', 'w10:a', 'w2:a', 'W1:a', 'w_:a', 'w%:a', 'w', 'x w1:']
    const ids = new Map<string, string>()
    for (const holder of holders) {
      const id = await startUpload(one)
      ids.set(holder, id)
      await one.takeTurn(id, holder)
    }
    const stillHeld = async () => {
      const held: string[] = []
      for (const [holder, id] of ids) {
        const answer = await one.takeTurn(id, 'probe')
        if (answer === 'busy') held.push(holder)
        else await one.releaseTurn(id, 'probe')
      }
      return held
    }
    await two.releaseTurns('w1:')
    t.strictSame(await stillHeld(), ['w10:a', 'w2:a', 'W1:a', 'w_:a', 'w%:a', 'w', 'x w1:'], 'w1:')
    await two.releaseTurns('w_')
    t.strictSame(await stillHeld(), ['w10:a', 'w2:a', 'W1:a', 'w%:a', 'w', 'x w1:'], 'w_ stands for itself')
    await two.releaseTurns('w%')
    t.strictSame(await stillHeld(), ['w10:a', 'w2:a', 'W1:a', 'w', 'x w1:'], '% does too')
    await two.releaseTurns('nobody')
    t.strictSame(await stillHeld(), ['w10:a', 'w2:a', 'W1:a', 'w', 'x w1:'], 'nobody’s')
    await two.releaseTurns('w')
    t.strictSame(await stillHeld(), ['W1:a', 'x w1:'], 'all that begin with w')
    await two.releaseTurns('')
    t.strictSame(await stillHeld(), [], 'everybody’s')
    t.equal((await two.totals()).openUploads, holders.length, 'no session is lost by it')
  })
}

function testExpiry(t: Test, newPlace: NewPlace<MetadataStore>): void {
  t.test('expiry: sessions that were not used since, and whose turn is free', async (t) => {
    const store = await (await openPlace(t, newPlace)).open()
    const old = await startUpload(store, team, now)
    const exact = await startUpload(store, other, now + 10)
    const young = await startUpload(store, team, now + 11)
    const held = await startUpload(store, team, now)
    await store.takeTurn(held, 'me')
    const used = await startUpload(store, team, now)
    await store.takeTurn(used, 'me')
    await store.saveProgress(used, 'me', { offset: 1, digest: undefined }, now + 20)
    t.strictSame(await store.expireUploads(now, 100), [], 'none is older than the oldest')
    t.strictSame(await store.expireUploads(now + 10, 100), [old], 'before the time, not at it')
    t.equal(await store.findUpload(old), undefined, 'it is over')
    t.strictSame(
      (await store.expireUploads(now + 1_000_000_000, 100)).sort(),
      [exact, young, used].sort(),
      'much later: all but the one whose turn is held',
    )
    t.equal(await store.takeTurn(held, 'you'), 'busy', 'that one goes on')
    t.equal(
      await store.saveProgress(held, 'me', { offset: 9, digest: undefined }, now + 30),
      true,
      'unharmed',
    )
    t.strictSame(await store.expireUploads(now + 30, 100), [], 'and its time counts anew')
    t.strictSame(await store.expireUploads(now + 31, 100), [held], 'until nobody has used it again')
    t.equal((await store.totals()).openUploads, 0, 'none is left')
  })

  t.test('expiry: at most so many at once, each told to one caller', async (t) => {
    const place = await openPlace(t, newPlace)
    const stores = [await place.open(), await place.open()] as const
    const ids = await Promise.all(
      Array.from({ length: 50 }, (_, age) => startUpload(stores[0], team, now + age)),
    )
    t.equal((await stores[0].expireUploads(now + 1000, 7)).length, 7, 'as many as the limit')
    t.equal((await stores[0].totals()).openUploads, 43, 'the others stay')
    t.strictSame(await stores[0].expireUploads(now + 1000, 0), [], 'a limit of none')
    const rounds = await Promise.all(
      Array.from({ length: 10 }, (_, number) =>
        (stores[number % 2] ?? stores[0]).expireUploads(now + 1000, 10),
      ),
    )
    const told = rounds.flat()
    t.equal(told.length, 43, 'ten callers at once end the rest')
    t.equal(new Set(told).size, 43, 'and no two are told of the same')
    t.ok(
      told.every((id) => ids.includes(id)),
      'which are those that were opened',
    )
  })
}

function testManifests(t: Test, newPlace: NewPlace<MetadataStore>): void {
  t.test('manifests: stored byte for byte, found by digest and by tag', async (t) => {
    const store = await (await openPlace(t, newPlace)).open()
    const everyByte = Buffer.from(Array.from({ length: 512 }, (_, at) => at % 256))
    const contents = {
      text: Buffer.from('{ "a": 1 }\r\n'),
      bytes: everyByte,
      empty: Buffer.alloc(0),
      large: Buffer.alloc(4 * 1024 * 1024, everyByte),
    }
    for (const [tag, bytes] of Object.entries(contents)) {
      for (const algorithm of ['sha256', 'sha512'] as const) {
        const digest = digestOf(bytes, algorithm)
        const name = `${tag}-${algorithm}`
        const put = manifest(tag, { bytes, digest, tags: [name], mediaType: `application/${tag}+json` })
        t.strictSame(await store.putManifest(put), { outcome: 'stored' }, name)
        for (const reference of [name, digest]) {
          const found = await store.findManifest(team, parseReference(reference))
          t.ok(found !== undefined && Buffer.compare(found.bytes, bytes) === 0, `${reference}: the bytes`)
          const head = { digest, mediaType: `application/${tag}+json`, size: bytes.length }
          t.match(found, head, `${reference}: what it is`)
          t.match(
            await store.findManifestHead(team, parseReference(reference)),
            head,
            `${reference}: the head`,
          )
        }
      }
    }
  })

  t.test('manifests: unknown where they were not put', async (t) => {
    const store = await (await openPlace(t, newPlace)).open()
    await store.putManifest(manifest('a', { tags: ['latest'] }))
    for (const [repository, reference] of [
      [team, 'Latest'],
      [team, 'lates'],
      [team, of('b')],
      [other, 'latest'],
      [other, of('a')],
      [parseRepositoryName('team'), 'latest'],
    ] as const) {
      const what = `${repository} ${reference}`
      t.equal(await store.findManifest(repository, parseReference(reference)), undefined, what)
      t.equal(
        await store.findManifestHead(repository, parseReference(reference)),
        undefined,
        `${what}: the head`,
      )
    }
  })

  t.test('manifests: tags move, and what they pointed at stays', async (t) => {
    const store = await (await openPlace(t, newPlace)).open()
    await store.putManifest(manifest('one', { tags: ['latest', '1', 'One'] }))
    await store.putManifest(manifest('two', { tags: ['latest', '2', 'one'] }))
    t.equal(await tagged(store, 'latest'), of('two'), 'a tag points at the last one')
    t.equal(await tagged(store, '1'), of('one'), 'another tag stays where it was')
    t.equal(await tagged(store, 'One'), of('one'), 'tags differ by their case')
    t.equal(await tagged(store, 'one'), of('two'), 'both ways')
    t.match(
      await store.findManifest(team, parseReference(of('one'))),
      { digest: of('one') },
      'the first is there',
    )
    await store.putManifest(manifest('one', { tags: ['latest'] }))
    t.equal(await tagged(store, 'latest'), of('one'), 'a tag can go back')
    await store.putManifest(manifest('two'))
    t.strictSame(
      await tagsOf(store),
      ['1', '2', 'One', 'latest', 'one'],
      'a push without a tag takes none away',
    )
  })

  t.test('manifests: the same one in two repositories is two', async (t) => {
    const store = await (await openPlace(t, newPlace)).open()
    await store.putManifest(manifest('a', { tags: ['x'] }))
    await store.putManifest(manifest('a', { tags: ['y'], repository: other }))
    await deleteManifest(store, team, of('a'))
    t.equal(await tagged(store, 'y', other), of('a'), 'one goes, the other stays')
  })

  t.test('manifests: a repository is there while it has one', async (t) => {
    const store = await (await openPlace(t, newPlace)).open()
    t.equal(await store.hasRepository(team), false, 'unknown')
    await addBlob(store, team, of('a'))
    t.equal(await store.hasRepository(team), false, 'with a blob alone')
    await store.putManifest(manifest('m', { tags: ['x'] }))
    t.equal(await store.hasRepository(team), true, 'with a manifest')
    t.equal(await store.hasRepository(parseRepositoryName('team')), false, 'not the one above')
    await deleteTag(store, team, 'x')
    t.equal(await store.hasRepository(team), true, 'without a tag')
    await deleteManifest(store, team, of('m'))
    t.equal(await store.hasRepository(team), false, 'without a manifest')
  })

  t.test('manifests: of many pushes of one tag at once the last wins, and all are there', async (t) => {
    const place = await openPlace(t, newPlace)
    const stores = [await place.open(), await place.open()] as const
    const texts = Array.from({ length: 40 }, (_, number) => `manifest ${number}`)
    const results = await Promise.all(
      texts.map((text, at) =>
        (stores[at % 2] ?? stores[0]).putManifest(manifest(text, { tags: ['latest'] })),
      ),
    )
    t.ok(
      results.every((result) => result.outcome === 'stored'),
      'all are stored',
    )
    const digests = texts.map(of)
    const last = await tagged(stores[0], 'latest')
    t.ok(last !== undefined && digests.includes(last), 'the tag points at one of them')
    t.equal(await tagged(stores[1], 'latest'), last, 'the same on both stores')
    for (const digest of digests) {
      if ((await stores[0].findManifestHead(team, parseReference(digest))) === undefined)
        t.fail(`${digest} is lost`)
    }
    t.strictSame(await tagsOf(stores[0]), ['latest'], 'there is one tag')
  })
}

function testChildren(t: Test, newPlace: NewPlace<MetadataStore>): void {
  /** Asserts that a push was refused and has left nothing. */
  async function isRefused(
    t: Test,
    store: MetadataStore,
    put: NewManifest,
    expected: PutManifestResult,
    what: string,
  ): Promise<void> {
    t.strictSame(await store.putManifest(put), expected, what)
    t.equal(
      await store.findManifest(put.repository, parseReference(put.digest)),
      undefined,
      `${what}: not stored`,
    )
    for (const tag of put.tags)
      t.equal(await tagged(store, tag, put.repository), undefined, `${what}: not tagged`)
    t.equal(await store.hasRepository(put.repository), false, `${what}: no repository comes of it`)
  }

  t.test('children: every required one must be in the repository', async (t) => {
    const store = await (await openPlace(t, newPlace)).open()
    await addBlob(store, team, of('here'))
    await addBlob(store, other, of('elsewhere'))
    const children = ['here', 'elsewhere', 'nowhere', 'nowhere'].map((name) => child(of(name)))
    const put = manifest('m', { children, tags: ['x'] })
    const missing: PutManifestResult = { outcome: 'missing', digests: [of('elsewhere'), of('nowhere')] }
    await isRefused(t, store, put, missing, 'two missing')
    await store.mountBlob(team, of('elsewhere'), other, now)
    const one: PutManifestResult = { outcome: 'missing', digests: [of('nowhere')] }
    await isRefused(t, store, put, one, 'one missing')
    await addBlob(store, team, of('nowhere'))
    t.strictSame(await store.putManifest(put), { outcome: 'stored' }, 'none missing')
    t.equal(await tagged(store, 'x'), of('m'), 'stored and tagged')
  })

  t.test('children: some need not be there', async (t) => {
    const store = await (await openPlace(t, newPlace)).open()
    const foreign = child(of('foreign'), { required: false })
    t.strictSame(
      await store.putManifest(manifest('m', { children: [foreign] })),
      { outcome: 'stored' },
      'optional',
    )
    const missing = [child(of('a')), child(of('b'), { role: 'manifest' })]
    const sparse = await store.putManifest(manifest('s', { children: missing, sparse: true }))
    t.strictSame(sparse, { outcome: 'stored' }, 'all, where the push is sparse')
    const subject = await store.putManifest(manifest('r', { subject: of('nothing'), artifactType: 'x/y' }))
    t.strictSame(subject, { outcome: 'stored' }, 'a subject')
  })

  t.test('children: the size must be the one that the manifest says, even in a sparse push', async (t) => {
    const store = await (await openPlace(t, newPlace)).open()
    await addBlob(store, team, of('a'), 10)
    await addBlob(store, team, of('empty'), 0)
    for (const sparse of [false, true]) {
      for (const [name, size, stored] of [
        ['a', 9, 10],
        ['a', 11, 10],
        ['a', 0, 10],
        ['empty', 1, 0],
      ] as const) {
        const put = manifest('m', { children: [child(of(name), { size })], sparse, tags: ['x'] })
        const wrong: PutManifestResult = { outcome: 'wrong-size', digest: of(name), size: stored }
        await isRefused(t, store, put, wrong, `${size} for ${stored}, sparse: ${sparse}`)
      }
    }
    const twice = manifest('m', { children: [child(of('a')), child(of('a'), { size: 11 })] })
    t.match(await store.putManifest(twice), { outcome: 'wrong-size' }, 'named twice with two sizes')
    const right = manifest('m', { children: [child(of('a')), child(of('empty'), { size: 0 })] })
    t.strictSame(await store.putManifest(right), { outcome: 'stored' }, 'the right sizes')
  })

  t.test('children: an index names manifests or blobs, an image blobs alone', async (t) => {
    const store = await (await openPlace(t, newPlace)).open()
    await store.putManifest(manifest('child'))
    await addBlob(store, team, of('layer'))
    const size = Buffer.from('child').length
    const index = [child(of('child'), { role: 'manifest', size }), child(of('layer'), { role: 'manifest' })]
    t.strictSame(
      await store.putManifest(manifest('index', { children: index })),
      { outcome: 'stored' },
      'an index',
    )
    const wrong = manifest('other', { children: [child(of('child'), { role: 'manifest', size: size + 1 })] })
    t.strictSame(
      await store.putManifest(wrong),
      { outcome: 'wrong-size', digest: of('child'), size },
      'the size of a manifest counts as well',
    )
    const image = manifest('image', { children: [child(of('child'), { size })] })
    t.strictSame(await store.putManifest(image), { outcome: 'missing', digests: [of('child')] }, 'an image')
  })

  t.test('children: thousands are no trouble', async (t) => {
    const store = await (await openPlace(t, newPlace)).open()
    const children = Array.from({ length: 20_000 }, (_, number) => child(of(`${number}`)))
    const result = await store.putManifest(manifest('m', { children }))
    t.equal(result.outcome === 'missing' && result.digests.length, 20_000, 'all are missed')
    await addBlob(store, team, of('17'))
    const again = await store.putManifest(manifest('m', { children }))
    t.equal(again.outcome === 'missing' && again.digests.length, 19_999, 'but for one that is there')
    t.strictSame(await store.putManifest(manifest('m', { children, sparse: true })), { outcome: 'stored' })
    t.equal(await store.unlinkBlob(team, of('17')), 'in-use', 'and all are known afterwards')
  })

  t.test('children: a manifest and the unlinking of its blob never both succeed', async (t) => {
    const place = await openPlace(t, newPlace)
    const [one, two] = [await place.open(), await place.open()]
    const outcomes = new Set<string>()
    for (let round = 0; round < 40; round++) {
      const digest = of(`blob ${round}`)
      await addBlob(one, team, digest)
      const put = () => one.putManifest(manifest(`manifest ${round}`, { children: [child(digest)] }))
      const unlink = () => two.unlinkBlob(team, digest)
      const [stored, unlinked] =
        round % 2 === 0
          ? await Promise.all([put(), unlink()])
          : await Promise.all([unlink(), put()]).then(([second, first]) => [first, second] as const)
      outcomes.add(`${stored.outcome} ${unlinked}`)
    }
    outcomes.delete('stored in-use')
    outcomes.delete('missing unlinked')
    t.strictSame([...outcomes], [], 'either the manifest has its blob, or both are gone')
  })
}

function testConditions(t: Test, newPlace: NewPlace<MetadataStore>): void {
  const a = of('a')
  const match = (digests: Condition['digests']): Condition => ({ mode: 'match', digests })
  const noneMatch = (digests: Condition['digests']): Condition => ({ mode: 'none-match', digests })
  const conditions: { condition: Condition; whenAbsent: boolean; whenA: boolean }[] = [
    { condition: match('any'), whenAbsent: false, whenA: true },
    { condition: match([a]), whenAbsent: false, whenA: true },
    { condition: match([of('z'), a, 'W/nonsense']), whenAbsent: false, whenA: true },
    { condition: match([of('z')]), whenAbsent: false, whenA: false },
    { condition: match([]), whenAbsent: false, whenA: false },
    { condition: noneMatch('any'), whenAbsent: true, whenA: false },
    { condition: noneMatch([a]), whenAbsent: true, whenA: false },
    { condition: noneMatch([of('z'), a]), whenAbsent: true, whenA: false },
    { condition: noneMatch([of('z')]), whenAbsent: true, whenA: true },
    { condition: noneMatch([]), whenAbsent: true, whenA: true },
  ]

  t.test('conditions: a write by tag depends on what the tag points at', async (t) => {
    const store = await (await openPlace(t, newPlace)).open()
    await store.putManifest(manifest('a'))
    for (const { condition, whenAbsent, whenA } of conditions) {
      const what = JSON.stringify(condition).replaceAll(a, 'A')
      const put = manifest('b', { tags: ['x', 'second'], condition })
      await deleteTag(store, team, 'x')
      await deleteTag(store, team, 'second')
      const absent = await store.putManifest(put)
      t.equal(absent.outcome, whenAbsent ? 'stored' : 'condition-failed', `${what}, no such tag`)
      t.equal(await tagged(store, 'x'), whenAbsent ? of('b') : undefined, `${what}, no such tag: the tag`)

      await store.putManifest(manifest('a', { tags: ['x'] }))
      await store.putManifest(manifest('a', { tags: ['second'] }))
      const present = await store.putManifest(put)
      t.equal(present.outcome, whenA ? 'stored' : 'condition-failed', `${what}, a tag at A`)
      t.equal(await tagged(store, 'x'), whenA ? of('b') : a, `${what}, a tag at A: the tag`)
      t.equal(await tagged(store, 'second'), whenA ? of('b') : a, `${what}: its second tag goes along`)
    }
  })

  t.test('conditions: a write by digest depends on the manifest itself', async (t) => {
    const store = await (await openPlace(t, newPlace)).open()
    for (const { condition, whenAbsent, whenA } of conditions) {
      const what = JSON.stringify(condition).replaceAll(a, 'A')
      await deleteManifest(store, team, a)
      const absent = await store.putManifest(manifest('a', { condition }))
      t.equal(absent.outcome, whenAbsent ? 'stored' : 'condition-failed', `${what}, unknown`)
      const found = await store.findManifestHead(team, parseReference(a))
      t.equal(found !== undefined, whenAbsent, `${what}, unknown: what is there`)
      await store.putManifest(manifest('a'))
      const present = await store.putManifest(manifest('a', { condition }))
      t.equal(present.outcome, whenA ? 'stored' : 'condition-failed', `${what}, known`)
    }
  })

  t.test('conditions: of many writers at once exactly one finds the tag as it says', async (t) => {
    const place = await openPlace(t, newPlace)
    const stores = [await place.open(), await place.open()] as const
    const race = async (round: string, condition: Condition) => {
      const results = await Promise.all(
        Array.from({ length: 30 }, (_, at) => {
          const put = manifest(`${round} ${at}`, { tags: ['x'], condition })
          return (stores[at % 2] ?? stores[0]).putManifest(put)
        }),
      )
      return results.filter(({ outcome }) => outcome === 'stored').length
    }
    t.equal(await race('create', noneMatch('any')), 1, 'who creates it')
    const current = await tagged(stores[0], 'x')
    t.equal(await race('replace', match([current ?? ''])), 1, 'who replaces the one it knows')
    t.not(await tagged(stores[1], 'x'), current, 'and it is replaced')
  })
}

function testDeletes(t: Test, newPlace: NewPlace<MetadataStore>): void {
  t.test('deletes: a tag goes alone', async (t) => {
    const store = await (await openPlace(t, newPlace)).open()
    await store.putManifest(manifest('a', { tags: ['x', 'y'] }))
    await store.putManifest(manifest('a', { tags: ['x'], repository: other }))
    t.equal(await deleteTag(store, team, 'z'), 'unknown', 'no such tag')
    t.equal(await deleteTag(store, parseRepositoryName('nobody'), 'x'), 'unknown', 'no such repository')
    t.equal(await deleteTag(store, team, 'x'), 'deleted', 'a tag')
    t.equal(await deleteTag(store, team, 'x'), 'unknown', 'again')
    t.strictSame(await tagsOf(store), ['y'], 'the other tag stays')
    t.equal(await tagged(store, 'x', other), of('a'), 'so does that of another repository')
    t.match(await store.findManifest(team, parseReference(of('a'))), { digest: of('a') }, 'and the manifest')
  })

  t.test('deletes: a manifest goes with its tags, and with its need for its children', async (t) => {
    const store = await (await openPlace(t, newPlace)).open()
    await addBlob(store, team, of('layer'))
    await addBlob(store, team, of('shared'))
    const children = [child(of('layer')), child(of('shared'))]
    await store.putManifest(manifest('a', { tags: ['x', 'y'], children }))
    await store.putManifest(manifest('b', { tags: ['z'], children: [child(of('shared'))] }))
    const entry = child(of('a'), { role: 'manifest', size: 1 })
    await store.putManifest(manifest('index', { tags: ['all'], children: [entry] }))
    t.equal(await deleteManifest(store, team, of('never')), 'unknown', 'no such manifest')
    t.equal(await deleteManifest(store, other, of('a')), 'unknown', 'not in this repository')
    t.equal(await deleteManifest(store, team, of('a')), 'deleted', 'a manifest')
    t.equal(await deleteManifest(store, team, of('a')), 'unknown', 'again')
    t.equal(await store.findManifest(team, parseReference(of('a'))), undefined, 'it is gone')
    t.strictSame(await tagsOf(store), ['all', 'z'], 'with its tags, and no other')
    t.equal(await store.unlinkBlob(team, of('layer')), 'unlinked', 'nothing needs its layer any more')
    t.equal(await store.unlinkBlob(team, of('shared')), 'in-use', 'what another manifest needs stays')
    t.equal(await tagged(store, 'all'), of('index'), 'an index that named it stays')

    await addBlob(store, team, of('layer'))
    t.strictSame(
      await store.putManifest(manifest('a', { tags: ['x'], children })),
      { outcome: 'stored' },
      'back',
    )
    t.equal(await store.unlinkBlob(team, of('layer')), 'in-use', 'with its need')
    t.strictSame(await tagsOf(store), ['all', 'x', 'z'], 'and only the tags that it is given anew')
  })
}

function testImmutableTags(t: Test, newPlace: NewPlace<MetadataStore>): void {
  t.test('immutable tags: they come into being, and then neither move nor go', async (t) => {
    const store = await (await openPlace(t, newPlace)).open()
    const put = async (text: string, tags: string[], immutable: string[]) => {
      const result = await store.putManifest(manifest(text, { tags, immutable }))
      return result.outcome === 'immutable' ? `immutable: ${result.tag}` : result.outcome
    }
    const versions = ['v*', 'release']
    t.equal(await put('a', ['v1', 'latest'], versions), 'stored', 'a new tag')
    t.equal(await put('a', ['v1'], versions), 'stored', 'the same again')
    t.equal(await put('b', ['v1'], versions), 'immutable: v1', 'another manifest')
    t.equal(await tagged(store, 'v1'), of('a'), 'the tag stays where it is')
    t.equal(await store.findManifest(team, parseReference(of('b'))), undefined, 'and nothing is stored')
    t.equal(await put('b', ['latest', 'new', 'v1'], versions), 'immutable: v1', 'among others')
    t.strictSame(
      [await tagged(store, 'latest'), await tagged(store, 'new')],
      [of('a'), undefined],
      'all or none',
    )
    t.equal(await put('b', ['latest', 'v2', 'V1'], versions), 'stored', 'tags that do not fit, or are new')
    t.equal(await put('c', ['v1'], ['v2']), 'stored', 'where the pattern is another')
    t.equal(await put('d', ['v1'], []), 'stored', 'or none')

    t.equal(await deleteTag(store, team, 'v1', versions), 'immutable: v1', 'the tag cannot be deleted')
    t.equal(await deleteTag(store, team, 'v9', versions), 'unknown', 'one that is not there')
    t.equal(await deleteTag(store, team, 'latest', versions), 'deleted', 'one that does not fit')
    t.equal(await deleteManifest(store, team, of('d'), versions), 'immutable: v1', 'nor its manifest')
    t.equal(await tagged(store, 'v1'), of('d'), 'both are there')
    t.equal(await deleteManifest(store, team, of('a'), versions), 'deleted', 'a manifest without such a tag')
    t.equal(await deleteManifest(store, team, of('never'), ['*']), 'unknown', 'none')
    t.equal(await deleteTag(store, team, 'v1', ['release']), 'deleted', 'where the pattern is another')
    t.equal(await deleteManifest(store, team, of('d'), versions), 'deleted', 'and then its manifest')
  })

  t.test('immutable tags: a repository’s patterns bind no other, and no tag there is needed', async (t) => {
    const store = await (await openPlace(t, newPlace)).open()
    await store.putManifest(manifest('a', { tags: ['v1'] }))
    await store.putManifest(manifest('a', { tags: ['w1'], repository: other }))
    t.equal(await deleteManifest(store, other, of('a'), ['v*']), 'deleted', 'a tag of another repository')
    t.equal(await deleteManifest(store, team, of('a'), ['*']), 'immutable: v1', 'its own')
  })

  t.test('immutable tags: of many who create one at once a single one does', async (t) => {
    const place = await openPlace(t, newPlace)
    const stores = [await place.open(), await place.open()] as const
    const results = await Promise.all(
      Array.from({ length: 30 }, (_, at) =>
        (stores[at % 2] ?? stores[0]).putManifest(manifest(`${at}`, { tags: ['v1'], immutable: ['*'] })),
      ),
    )
    t.equal(results.filter(({ outcome }) => outcome === 'stored').length, 1, 'one is stored')
    t.equal(results.filter(({ outcome }) => outcome === 'immutable').length, 29, 'the others are refused')
    const winner = results.findIndex(({ outcome }) => outcome === 'stored')
    t.equal(await tagged(stores[1], 'v1'), of(`${winner}`), 'the tag is the one that was stored')
  })
}

function testLists(t: Test, newPlace: NewPlace<MetadataStore>): void {
  t.test('lists: tags in the order of their bytes, in pages of any length', async (t) => {
    const store = await (await openPlace(t, newPlace)).open()
    t.strictSame(await store.listTags(team, '', 10), { names: [], more: false }, 'none at first')
    const names = [
      'a',
      'a-b',
      'a.b',
      'a_b',
      'ab',
      'a0',
      'A',
      'B',
      'Z',
      'z',
      '0',
      '00',
      '10',
      '9',
      '_',
      '_-',
      'v1.0',
      'v1.0-rc.1',
      'v1.10',
      'v1.2',
      'x'.repeat(128),
    ]
    for (const name of [...names].reverse()) await store.putManifest(manifest(name, { tags: [name] }))
    await store.putManifest(manifest('elsewhere', { repository: other, tags: ['a-', 'elsewhere'] }))
    const sorted = byBytes(names)
    for (let limit = 1; limit <= names.length + 1; limit++) {
      const walked = await walk(t, limit, (after) => store.listTags(team, after, limit))
      t.strictSame(walked, sorted, `pages of ${limit}`)
    }
    t.strictSame(await store.listTags(team, '', names.length), { names: sorted, more: false }, 'exactly all')
    t.match(await store.listTags(team, '', 0), { names: [] }, 'a page of none')
    for (const after of [...sorted, 'a-', 'a-a', 'a-c', '!', '~', 'zz', 'é', 'v1.0-', 'x']) {
      const rest = sorted.filter((name) => Buffer.compare(Buffer.from(name), Buffer.from(after)) > 0)
      t.strictSame((await store.listTags(team, after, 100)).names, rest, `after ${after.slice(0, 20)}`)
    }
  })

  t.test('lists: repositories that hold a manifest, in the order of their bytes', async (t) => {
    const store = await (await openPlace(t, newPlace)).open()
    t.strictSame(await store.listRepositories('', '', 10), { names: [], more: false }, 'none at first')
    const names = [
      'a',
      'a-b',
      'a.b',
      'a/b',
      'a/b/c',
      'a0',
      'a_b',
      'ab',
      'b',
      '0',
      'a-b/c',
      'blobs',
      'tags/list',
      'v2',
    ]
    for (const name of [...names].reverse()) {
      await store.putManifest(manifest('m', { repository: parseRepositoryName(name), tags: ['x', 'y'] }))
    }
    await addBlob(store, parseRepositoryName('a-only-a-blob'), of('a'))
    await startUpload(store, parseRepositoryName('a-only-a-session'))
    const gone = parseRepositoryName('a-gone')
    await store.putManifest(manifest('m', { repository: gone }))
    await deleteManifest(store, gone, of('m'))
    const refused = { repository: parseRepositoryName('a-refused'), children: [child(of('never'))] }
    await store.putManifest(manifest('m', refused))
    const sorted = byBytes(names)
    for (let limit = 1; limit <= names.length + 1; limit++) {
      const walked = await walk(t, limit, (after) => store.listRepositories('', after, limit))
      t.strictSame(walked, sorted, `pages of ${limit}`)
    }
    for (const after of [...sorted, 'a-', 'a/', 'a/a', '~', 'A']) {
      const rest = sorted.filter((name) => Buffer.compare(Buffer.from(name), Buffer.from(after)) > 0)
      t.strictSame((await store.listRepositories('', after, 100)).names, rest, `after ${after}`)
      for (const prefix of ['a', 'a/', 'a-b', 'a/b/c', 'b', 'none']) {
        const { names: found } = await store.listRepositories(prefix, after, 100)
        const expected = rest.filter((name) => name.startsWith(prefix))
        t.strictSame(found, expected, `after ${after}, of ${prefix}`)
      }
    }
    t.strictSame(await store.listRepositories('a/', '', 1), { names: ['a/b'], more: true }, 'a page of them')
  })

  t.test('lists: a search tells equal names first, then those that begin so, then the others', async (t) => {
    const store = await (await openPlace(t, newPlace)).open()
    const names = ['web', 'web-ui', 'web/api', 'my/web', 'a-web', 'other', 'we', 'a_b', 'a.b', 'axb']
    for (const name of names)
      await store.putManifest(manifest('m', { repository: parseRepositoryName(name) }))
    await addBlob(store, parseRepositoryName('web/only-a-blob'), of('a'))
    const search = (text: string, limit = 100) => store.searchRepositories([''], text, limit)
    const found = await search('web')
    t.equal(found[0], 'web', 'the equal one')
    t.strictSame([...found.slice(1, 3)].sort(), ['web-ui', 'web/api'], 'those that begin so')
    t.strictSame(
      [...found.slice(3)].sort(),
      ['a-web', 'my/web'],
      'the others, and nothing without a manifest',
    )
    t.strictSame(await search('web', 1), ['web'], 'a limit takes from the front')
    t.strictSame(await search('web', 3), found.slice(0, 3), 'at any length')
    t.strictSame(await search('nothing'), [], 'no match')
    t.strictSame(await search('a_b'), ['a_b'], '_ stands for itself')
    t.strictSame(await search('%'), [], '% does too')
    t.strictSame(await search("'"), [], 'and a quote')
    t.strictSame(await search('*'), [], 'and a star')
    const within = (...prefixes: string[]) => store.searchRepositories(prefixes, 'web', 100)
    t.strictSame(await within('my/', 'web/'), ['web/api', 'my/web'], 'within prefixes')
    t.strictSame(await within(), [], 'within none')
  })
}

function readText(text: Uint8Array | undefined): Record<string, string> | undefined {
  return text === undefined ? undefined : JSON.parse(Buffer.from(text).toString())
}

function testReferrers(t: Test, newPlace: NewPlace<MetadataStore>): void {
  const subject = of('the image')
  const most = { count: 100, bytes: 1_000_000 }
  const list = async (store: MetadataStore, types: string[] = [], after = 0, count = 100) => {
    const { referrers } = await store.listReferrers(team, subject, types, after, { ...most, count })
    return referrers.map((referrer) => ({ ...referrer, annotations: readText(referrer.annotations) }))
  }

  t.test(
    'referrers: those of one subject in one repository, oldest first, with all that is told of them',
    async (t) => {
      const store = await (await openPlace(t, newPlace)).open()
      t.strictSame(await list(store), [], 'none, of a subject that nobody knows')
      const texts = ['first', 'second', 'third']
      for (const text of texts) {
        const put = {
          subject,
          artifactType: `type/${text}`,
          mediaType: `media/${text}`,
          annotations: JSON.stringify({ text }),
        }
        await store.putManifest(manifest(text, { ...put, tags: [`t-${text}`] }))
      }
      await store.putManifest(manifest('of another', { subject: of('another image') }))
      await store.putManifest(manifest('of nothing'))
      await store.putManifest(manifest('elsewhere', { subject, repository: other }))
      const found = await list(store)
      t.match(
        found,
        texts.map((text) => ({
          digest: of(text),
          mediaType: `media/${text}`,
          size: text.length,
          artifactType: `type/${text}`,
          annotations: { text },
        })),
        'the three',
      )
      t.equal(found.length, 3, 'and no more')
      await store.putManifest(manifest('first', { subject, artifactType: 'type/first' }))
      t.strictSame(
        (await list(store)).map(({ digest }) => digest),
        texts.map(of),
        'a push again adds none',
      )
      await deleteManifest(store, team, of('second'))
      t.strictSame(
        (await list(store)).map(({ digest }) => digest),
        [of('first'), of('third')],
        'a deleted one goes',
      )
      await store.putManifest(manifest('the image'))
      await deleteManifest(store, team, subject)
      t.equal((await list(store)).length, 2, 'the subject may come and go')
    },
  )

  t.test('referrers: the filter takes any of the types, exactly', async (t) => {
    const store = await (await openPlace(t, newPlace)).open()
    const types = ['a/b', 'a/b+json', 'A/b', 'a/', 'it\'s, "odd" [x]', 'ä/b', undefined]
    for (const [at, artifactType] of types.entries()) {
      await store.putManifest(manifest(`${at}`, { subject, artifactType }))
    }
    for (const type of types) {
      if (type === undefined) continue
      t.strictSame(
        (await list(store, [type])).map(({ artifactType }) => artifactType),
        [type],
        type,
      )
    }
    const two = (await list(store, ['a/b+json', 'none', 'a/b'])).map(({ artifactType }) => artifactType)
    t.strictSame(two, ['a/b', 'a/b+json'], 'two of them, in the list’s order')
    t.strictSame(await list(store, ['a']), [], 'a part is no match')
    t.strictSame(await list(store, ['']), [], 'nor is nothing')
    t.strictSame(
      (await list(store)).map(({ artifactType }) => artifactType),
      types,
      'no filter: all',
    )
  })

  t.test('referrers: annotations come back as they were', async (t) => {
    const store = await (await openPlace(t, newPlace)).open()
    const odd: Record<string, string> = JSON.parse(
      '{"__proto__":"p","constructor":"c","":"empty","a.b/c":"","\\u0000":"\\u0000","ü🚢":"ü🚢","q":"\\"\'\\\\\\n"}',
    )
    const kinds = [odd, {}, undefined]
    for (const [at, annotations] of kinds.entries()) {
      const text = annotations === undefined ? undefined : JSON.stringify(annotations)
      await store.putManifest(manifest(`${at}`, { subject, annotations: text }))
    }
    const [first, second, third] = (await list(store)).map(({ annotations }) => annotations)
    t.strictSame(Object.entries(first ?? {}), Object.entries(odd), 'every name and every value')
    t.strictSame(Object.entries(second ?? {}), [], 'none of them')
    t.equal(third, undefined, 'nothing at all')
  })

  t.test('S98: a list of referrers ends before the annotations that would be too many bytes', async (t) => {
    const store = await (await openPlace(t, newPlace)).open()
    const kinds = [10, 500, 300, 900, 9, undefined]
    for (const [at, bytes] of kinds.entries()) {
      const annotations = bytes === undefined ? undefined : JSON.stringify({ a: 'x'.repeat(bytes - 8) })
      await store.putManifest(manifest(`${at}`, { subject, artifactType: `t/${at % 2}`, annotations }))
    }
    const read = async (bytes: number, types: string[] = []) => {
      const pages: number[][] = []
      for (let after = 0, more = true; more; ) {
        const page = await store.listReferrers(team, subject, types, after, { count: 4, bytes })
        pages.push(page.referrers.map(({ digest }) => kinds.findIndex((_, at) => of(`${at}`) === digest)))
        after = page.referrers.at(-1)?.position ?? Number.NaN
        more = page.more
      }
      return pages
    }
    t.strictSame(await read(810), [[0, 1, 2], [3], [4, 5]], 'as many as have room, and never none')
    t.strictSame(await read(809), [[0, 1], [2], [3], [4, 5]], 'the last byte counts')
    t.strictSame(
      await read(10_000),
      [
        [0, 1, 2, 3],
        [4, 5],
      ],
      'no more than were asked for',
    )
    t.strictSame(await read(320, ['t/0']), [[0, 2, 4]], 'those that the filter leaves out take no room')
  })

  t.test('referrers: pages go on after a position, with and without a filter', async (t) => {
    const store = await (await openPlace(t, newPlace)).open()
    const expected: Digest[] = []
    for (let number = 0; number < 23; number++) {
      await store.putManifest(manifest(`r${number}`, { subject, artifactType: `type/${number % 2}` }))
      await store.putManifest(manifest(`between ${number}`, { subject: of('another') }))
      expected.push(of(`r${number}`))
    }
    const pages = async (types: string[], limit: number) => {
      const digests: Digest[] = []
      for (let after = 0; ; ) {
        const page = await list(store, types, after, limit)
        if (page.length > limit) t.fail(`a page of ${limit} has ${page.length}`)
        digests.push(...page.map(({ digest }) => digest))
        const last = page.at(-1)
        if (last === undefined || page.length < limit) return digests
        after = last.position
      }
    }
    for (const limit of [1, 5, 22, 23, 24])
      t.strictSame(await pages([], limit), expected, `pages of ${limit}`)
    const even = expected.filter((_digest, at) => at % 2 === 0)
    for (const limit of [1, 5, 12]) t.strictSame(await pages(['type/0'], limit), even, `filtered, ${limit}`)
  })
}

function testTogether(t: Test, newPlace: NewPlace<MetadataStore>): void {
  t.test('totals: blobs by their digest, bytes, open sessions', async (t) => {
    const store = await (await openPlace(t, newPlace)).open()
    t.match(await store.totals(), { blobs: 0, blobBytes: 0, openUploads: 0 }, 'nothing at first')
    await addBlob(store, team, of('a'), 100)
    await addBlob(store, other, of('a'), 100)
    await addBlob(store, other, of('b'), 5)
    await startUpload(store)
    const totals = await store.totals()
    t.match(totals, { blobs: 2, blobBytes: 105, openUploads: 1 }, 'each digest once')
    t.ok(totals.metadataBytes > 0, 'the metadata take some room')
    await store.check()
    t.match(await store.totals(), { blobs: 2, blobBytes: 105, openUploads: 1 }, 'a check changes nothing')
  })

  t.test('two stores: what one has resolved the other sees at once', async (t) => {
    const place = await openPlace(t, newPlace)
    const stores = [await place.open(), await place.open()] as const
    for (let round = 0; round < 20; round++) {
      const writer = stores[round % 2] ?? stores[0]
      const reader = stores[(round + 1) % 2] ?? stores[1]
      const text = `manifest ${round}`
      await addBlob(writer, team, of(`blob ${round}`))
      await writer.putManifest(manifest(text, { tags: ['latest'], children: [child(of(`blob ${round}`))] }))
      const id = await startUpload(writer)
      const seen = [
        await reader.findBlob(team, of(`blob ${round}`)),
        await tagged(reader, 'latest'),
        (await reader.findUpload(id))?.id,
      ]
      t.strictSame(seen, [10, of(text), id], `round ${round}`)
    }
  })

  t.test('reopening: everything is there, and turns are still held', async (t) => {
    const place = await openPlace(t, newPlace)
    const first = await place.open()
    await addBlob(first, team, of('layer'))
    await first.mountBlob(other, of('layer'), team, now)
    await first.putManifest(manifest('image', { tags: ['latest', '1'], children: [child(of('layer'))] }))
    await first.putManifest(manifest('referrer', { subject: of('image'), annotations: '{"a":"b"}' }))
    const [held, free] = [await startUpload(first), await startUpload(first)]
    await first.takeTurn(free, 'w1:x')
    await first.saveProgress(free, 'w1:x', { offset: 77, digest: of('77') }, now)
    await first.takeTurn(held, 'w1:x')
    const before = await first.totals()
    await place.close(first)

    const second = await place.open()
    const { metadataBytes: _before, ...counted } = before
    t.match(await second.totals(), counted, 'the totals')
    t.strictSame(await tagsOf(second), ['1', 'latest'], 'the tags')
    t.match(
      await second.findManifest(team, parseReference('latest')),
      { digest: of('image') },
      'the manifest',
    )
    t.equal(await second.unlinkBlob(team, of('layer')), 'in-use', 'its children')
    t.equal(await second.findBlob(other, of('layer')), 10, 'the mount')
    const { referrers } = await second.listReferrers(team, of('image'), [], 0, { count: 9, bytes: 1000 })
    t.match(
      referrers.map(({ annotations }) => readText(annotations)),
      [{ a: 'b' }],
      'referrers',
    )
    t.match(await second.findUpload(free), { offset: 77, digest: of('77') }, 'the progress of a session')
    t.equal(await second.takeTurn(held, 'w2:x'), 'busy', 'a turn outlives its store')
    await second.releaseTurns('w1:')
    t.match(await second.takeTurn(held, 'w2:x'), { id: held }, 'until it is known that its holder is dead')
  })
}
