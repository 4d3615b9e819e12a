import { createHash } from 'node:crypto'
import { PassThrough, Readable, Writable } from 'node:stream'
import type { Test } from 'tap'
import type { Algorithm, Digest } from '../../src/oci/digest.js'
import { digestOf } from '../../src/oci/digest.js'
import type { AppendOptions, AppendResult, BlobStore } from '../../storage/blob-store.js'
import { eventually, within } from '../harness.js'
import { bodyOf, brokenBody, Collector, cut, readBlob, someBytes } from './bodies.js'
import { type NewPlace, openPlace } from './place.js'
import { refusalOf, refuses } from './refusals.js'

const mebibyte = 1024 * 1024
const noLimit = Number.MAX_SAFE_INTEGER

/** What an append is told, where a test does not care: sha256, no limit, nothing known of the digest. */
function at(offset: number, more: Partial<AppendOptions> = {}): AppendOptions {
  return { offset, digest: undefined, limit: noLimit, algorithm: 'sha256', ...more }
}

/** Asserts that an append has stored so many bytes, and that its digest, where it gives one, is theirs. */
function appended(
  t: Test,
  result: AppendResult,
  bytes: Buffer,
  what: string,
  algorithm: Algorithm = 'sha256',
): void {
  t.equal(result.size, bytes.length, `${what}: the size is that of all bytes`)
  if (result.digest !== undefined) {
    t.equal(result.digest, digestOf(bytes, algorithm), `${what}: the digest is that of all bytes`)
  }
}

/** Makes an upload of these bytes a blob. */
async function store(
  blobs: BlobStore,
  id: string,
  bytes: Buffer,
  algorithm: Algorithm = 'sha256',
): Promise<Digest> {
  const digest = digestOf(bytes, algorithm)
  await blobs.append(id, bodyOf(bytes), at(0, { algorithm }))
  await blobs.commit(id, digest, bytes.length)
  return digest
}

/** The whole content of a blob; undefined when there is none. */
async function contentOf(blobs: BlobStore, digest: Digest): Promise<Buffer | undefined> {
  const reader = await blobs.open(digest)
  if (reader === undefined) return undefined
  try {
    return await readBlob(reader)
  } finally {
    await reader.close()
  }
}

async function holds(t: Test, blobs: BlobStore, bytes: Buffer, what: string): Promise<void> {
  const content = await contentOf(blobs, digestOf(bytes))
  t.ok(content?.equals(bytes), what)
}

/**
 * What every driver of {@link BlobStore} must do, as its docstrings promise it. Registers one test per promise.
 * @param newPlace makes a fresh place; stores opened on it one after another or at once see the same bytes
 */
export function testBlobStore(t: Test, newPlace: NewPlace<BlobStore>): void {
  testAppend(t, newPlace)
  testBrokenBodies(t, newPlace)
  testDigests(t, newPlace)
  testCommit(t, newPlace)
  testUploads(t, newPlace)
  testReading(t, newPlace)
}

function testAppend(t: Test, newPlace: NewPlace<BlobStore>): void {
  t.test('append: a body is stored however it is cut', async (t) => {
    const place = await openPlace(t, newPlace)
    const blobs = await place.open()
    const bytes = someBytes(3 * mebibyte + 17)
    const cuts = [mebibyte - 1, mebibyte, mebibyte + 1, 65_536, 1000, bytes.length]
    for (const length of cuts) {
      const id = `cut-${length}`
      const result = await blobs.append(id, bodyOf(...cut(bytes, length)), at(0))
      appended(t, result, bytes, `pieces of ${length}`)
      t.equal(result.failure, undefined, `pieces of ${length}: no failure`)
      t.equal(await blobs.digestUpload(id, 'sha256', bytes.length), digestOf(bytes), `pieces of ${length}`)
    }
    const small = bytes.subarray(0, 3000)
    appended(t, await blobs.append('bytes', bodyOf(...cut(small, 1)), at(0)), small, 'pieces of 1')
    t.equal(await blobs.digestUpload('bytes', 'sha256', small.length), digestOf(small), 'pieces of 1')
  })

  t.test('append: one body goes on where the one before ended', async (t) => {
    const place = await openPlace(t, newPlace)
    const blobs = await place.open()
    const bytes = someBytes(2 * mebibyte + 5)
    const ends = [0, 1, 100, 65_536, mebibyte, mebibyte + 1, bytes.length]
    let last: AppendResult = { size: 0, digest: undefined, failure: undefined }
    for (const end of ends) {
      const piece = bytes.subarray(last.size, end)
      last = await blobs.append('a', bodyOf(...cut(piece, 4096)), at(last.size, { digest: last.digest }))
      appended(t, last, bytes.subarray(0, end), `up to ${end}`)
    }
    await blobs.commit('a', digestOf(bytes), bytes.length)
    await holds(t, blobs, bytes, 'the blob is all the pieces in their order')
  })

  t.test('append: no body, and an empty one, make an empty upload and add nothing to another', async (t) => {
    const place = await openPlace(t, newPlace)
    const blobs = await place.open()
    const none = Buffer.alloc(0)
    appended(t, await blobs.append('none', undefined, at(0)), none, 'no body')
    appended(t, await blobs.append('empty', bodyOf(), at(0)), none, 'an empty body')
    await blobs.commit('none', digestOf(none), 0)
    await holds(t, blobs, none, 'the empty blob can be read')
    await blobs.commit('empty', digestOf(none), 0)
    await holds(t, blobs, none, 'and again')

    const five = Buffer.from('12345')
    const before = await blobs.append('five', bodyOf(five), at(0))
    appended(t, await blobs.append('five', undefined, at(5, { digest: before.digest })), five, 'no more')
    appended(t, await blobs.append('five', bodyOf(), at(5, { digest: before.digest })), five, 'nothing more')
    t.equal(await blobs.digestUpload('five', 'sha256', 5), digestOf(five), 'the bytes are as before')
  })

  t.test('append: bytes beyond the offset are left-overs and are dropped', async (t) => {
    const place = await openPlace(t, newPlace)
    const blobs = await place.open()
    await blobs.append('a', bodyOf(Buffer.from('0123456789')), at(0))
    const kept = digestOf(Buffer.from('0123'))
    const shorter = await blobs.append('a', bodyOf(Buffer.from('ab')), at(4, { digest: kept }))
    appended(t, shorter, Buffer.from('0123ab'), 'a shorter piece over a longer one')
    await refuses(t, blobs.digestUpload('a', 'sha256', 7), 'BLOB_UPLOAD_UNKNOWN', 'nothing is left beyond it')
    t.equal(await blobs.digestUpload('a', 'sha256', 6), digestOf(Buffer.from('0123ab')), 'the bytes')

    appended(t, await blobs.append('a', undefined, at(3)), Buffer.from('012'), 'cut back with nothing added')
    appended(t, await blobs.append('a', bodyOf(Buffer.from('x')), at(0)), Buffer.from('x'), 'anew from 0')
    await blobs.commit('a', digestOf(Buffer.from('x')), 1)
    await holds(t, blobs, Buffer.from('x'), 'the blob has no left-over')
  })

  t.test('append: an upload with fewer bytes than the offset is lost', async (t) => {
    const place = await openPlace(t, newPlace)
    const blobs = await place.open()
    const more = () => bodyOf(Buffer.from('more'))
    await refuses(t, blobs.append('never', more(), at(1)), 'BLOB_UPLOAD_UNKNOWN', 'never begun')
    await blobs.append('short', bodyOf(Buffer.from('abc')), at(0))
    await refuses(t, blobs.append('short', more(), at(4)), 'BLOB_UPLOAD_UNKNOWN', 'one byte short')
    await refuses(t, blobs.append('short', undefined, at(4)), 'BLOB_UPLOAD_UNKNOWN', 'short, without a body')
    await blobs.discard('short')
    await refuses(t, blobs.append('short', more(), at(3)), 'BLOB_UPLOAD_UNKNOWN', 'discarded')
    t.notOk((await blobs.listUploads()).includes('never'), 'a refused append begins no upload')
  })

  t.test('append: the limit counts the whole upload, and one byte more undoes the append', async (t) => {
    const place = await openPlace(t, newPlace)
    const blobs = await place.open()
    const bytes = someBytes(3 * mebibyte)
    const limit = 2 * mebibyte + 100

    const exact = await blobs.append(
      'exact',
      bodyOf(...cut(bytes.subarray(0, limit), 50_000)),
      at(0, { limit }),
    )
    appended(t, exact, bytes.subarray(0, limit), 'exactly the limit')
    const none = blobs.append('exact', bodyOf(Buffer.from('x')), at(limit, { limit, digest: exact.digest }))
    await refuses(t, none, 'BLOB_TOO_LARGE', 'a byte beyond a full upload')
    t.equal(await blobs.digestUpload('exact', 'sha256', limit), exact.digest ?? '', 'what was there is there')

    const first = await blobs.append('a', bodyOf(bytes.subarray(0, mebibyte)), at(0, { limit }))
    const rest = bytes.subarray(mebibyte)
    const told = at(mebibyte, { limit, digest: first.digest })
    await refuses(t, blobs.append('a', bodyOf(...cut(rest, 10_000)), told), 'BLOB_TOO_LARGE', 'too long')
    await refuses(t, blobs.append('a', bodyOf(rest), told), 'BLOB_TOO_LARGE', 'too long in one piece')
    await refuses(
      t,
      blobs.digestUpload('a', 'sha256', mebibyte + 1),
      'BLOB_UPLOAD_UNKNOWN',
      'the upload is back at its offset',
    )
    const fitting = rest.subarray(0, limit - mebibyte)
    const second = await blobs.append('a', bodyOf(...cut(fitting, 10_000)), told)
    appended(t, second, bytes.subarray(0, limit), 'a body that fits, afterwards')
    t.equal(await blobs.digestUpload('a', 'sha256', limit), digestOf(bytes.subarray(0, limit)), 'its bytes')
  })

  t.test('append: a body without an end meets the limit too', async (t) => {
    const place = await openPlace(t, newPlace)
    const blobs = await place.open()
    let given = 0
    const endless = new Readable({
      read() {
        given += 10_000
        this.push(Buffer.alloc(10_000))
      },
    })
    t.teardown(() => endless.destroy())
    await refuses(t, blobs.append('a', endless, at(0, { limit: mebibyte })), 'BLOB_TOO_LARGE', 'refused')
    t.ok(given < 4 * mebibyte, 'soon after it has passed the limit')
    t.notOk(endless.destroyed, 'the body is left to its owner')
  })

  t.test('append: many uploads at once do not mix', async (t) => {
    const place = await openPlace(t, newPlace)
    const blobs = await place.open()
    const contents = Array.from({ length: 40 }, (_, seed) => someBytes(40_000 + seed * 1000, seed))
    const sizes = await Promise.all(
      contents.map(async (bytes, number) => {
        const body = bodyOf(...cut(bytes, 7000))
        return (await blobs.append(`upload-${number}`, body, at(0))).size
      }),
    )
    t.strictSame(
      sizes,
      contents.map((bytes) => bytes.length),
      'each has its size',
    )
    const digests = await Promise.all(
      contents.map((bytes, number) => blobs.digestUpload(`upload-${number}`, 'sha256', bytes.length)),
    )
    t.strictSame(
      digests,
      contents.map((bytes) => digestOf(bytes)),
      'each has its bytes',
    )
  })
}

function testBrokenBodies(t: Test, newPlace: NewPlace<BlobStore>): void {
  t.test('append: what came of a broken body is kept, and the failure told', async (t) => {
    const place = await openPlace(t, newPlace)
    const blobs = await place.open()
    for (const length of [0, 1, 1000, mebibyte, 2 * mebibyte + 1]) {
      const id = `broken-${length}`
      const bytes = someBytes(length + 500)
      const came = bytes.subarray(0, length)
      const broken = await blobs.append(id, brokenBody(...cut(came, 16_384)), at(0))
      appended(t, broken, came, `${length} bytes`)
      t.ok(broken.failure instanceof Error, `${length} bytes: the failure is told`)
      const told = at(length, { digest: broken.digest })
      const whole = await blobs.append(id, bodyOf(bytes.subarray(length)), told)
      appended(t, whole, bytes, `${length} bytes and the rest`)
      t.equal(whole.failure, undefined, `${length} bytes and the rest: no failure`)
      await blobs.commit(id, digestOf(bytes), bytes.length)
      await holds(t, blobs, bytes, `${length} bytes and the rest: the blob is whole`)
    }
  })

  t.test('append: a body that is destroyed, with or without a reason, ends the append', async (t) => {
    const place = await openPlace(t, newPlace)
    const blobs = await place.open()
    const reasons = { silently: undefined, 'with an error': new Error('stalled') }
    for (const [how, reason] of Object.entries(reasons)) {
      const before = new PassThrough()
      before.on('error', () => undefined)
      before.destroy(reason)
      const early = await within(
        30_000,
        'an append of a dead body',
        blobs.append(`early ${how}`, before, at(0)),
      )
      t.equal(early.size, 0, `${how}, before the append: nothing came`)
      t.ok(early.failure instanceof Error, `${how}, before the append: the failure is told`)

      const during = new PassThrough()
      const running = blobs.append(`late ${how}`, during, at(0))
      await new Promise((resolve) => during.write(Buffer.from('what came'), resolve))
      await eventually('the bytes to be taken', () => during.readableLength === 0)
      during.destroy(reason)
      const late = await within(30_000, 'an append of a dying body', running)
      appended(t, late, Buffer.from('what came'), `${how}, during the append`)
      t.ok(late.failure instanceof Error, `${how}, during the append: the failure is told`)
      if (reason !== undefined) t.equal(late.failure, reason, 'and it is the reason that was given')
    }
  })

  t.test('append: a body may fail after its end without harm', async (t) => {
    const place = await openPlace(t, newPlace)
    const blobs = await place.open()
    const body = new PassThrough()
    body.end('all of it')
    const result = await blobs.append('a', body, at(0))
    appended(t, result, Buffer.from('all of it'), 'the body')
    t.equal(result.failure, undefined, 'no failure')
    body.emit('error', new Error('too late'))
    t.equal(await blobs.digestUpload('a', 'sha256', 9), digestOf(Buffer.from('all of it')), 'the bytes stay')
  })
}

function testDigests(t: Test, newPlace: NewPlace<BlobStore>): void {
  for (const algorithm of ['sha256', 'sha512'] as const) {
    t.test(`digests: ${algorithm} goes on across appends and across stores on one place`, async (t) => {
      const place = await openPlace(t, newPlace)
      const stores = [await place.open(), await place.open()] as const
      const bytes = someBytes(200_000)
      const expected = createHash(algorithm)
      let last: AppendResult = { size: 0, digest: undefined, failure: undefined }
      for (const [turn, piece] of cut(bytes, 20_000).entries()) {
        expected.update(piece)
        const blobs = turn % 3 === 2 ? stores[1] : stores[0]
        last = await blobs.append('a', bodyOf(piece), at(last.size, { digest: last.digest, algorithm }))
        const digest = `${algorithm}:${expected.copy().digest('hex')}` as Digest
        if (last.digest !== undefined) t.equal(last.digest, digest, `after piece ${turn}`)
        t.equal(await stores[0].digestUpload('a', algorithm, last.size), digest, `read again, piece ${turn}`)
      }
      const digest = digestOf(bytes, algorithm)
      await stores[1].commit('a', digest, bytes.length)
      t.ok((await contentOf(stores[0], digest))?.equals(bytes), 'committed by one, read by the other')
    })
  }

  t.test('digests: bytes of an append that was never acknowledged are in no later digest', async (t) => {
    const place = await openPlace(t, newPlace)
    const [one, other] = [await place.open(), await place.open()]
    // The first store took ten bytes, but nobody recorded them; the upload began again on the other store.
    await one.append('a', bodyOf(Buffer.from('forged one')), at(0))
    const real = await other.append('a', bodyOf(Buffer.from('honest one')), at(0))
    const told = at(10, { digest: real.digest ?? digestOf(Buffer.from('honest one')) })
    const last = await one.append('a', bodyOf(Buffer.from('!')), told)
    appended(t, last, Buffer.from('honest one!'), 'the store that saw other bytes')
    t.equal(await one.digestUpload('a', 'sha256', 11), digestOf(Buffer.from('honest one!')), 'read again')

    // The same with the digest unknown to the metadata, and within one store.
    await one.append('b', bodyOf(Buffer.from('forged one')), at(0))
    await other.append('b', bodyOf(Buffer.from('honest one')), at(0))
    appended(
      t,
      await one.append('b', bodyOf(Buffer.from('!')), at(10)),
      Buffer.from('honest one!'),
      'unknown',
    )
    await one.append('c', bodyOf(Buffer.from('abc')), at(0))
    await one.append('c', bodyOf(Buffer.from('def')), at(3, { digest: digestOf(Buffer.from('abc')) }))
    const again = await one.append(
      'c',
      bodyOf(Buffer.from('xyz')),
      at(3, { digest: digestOf(Buffer.from('abc')) }),
    )
    appended(t, again, Buffer.from('abcxyz'), 'a piece sent again with other bytes')
  })

  t.test('digests: an append gives its digest in the algorithm that it was asked in', async (t) => {
    const place = await openPlace(t, newPlace)
    const blobs = await place.open()
    const first = await blobs.append('a', bodyOf(Buffer.from('abc')), at(0, { algorithm: 'sha256' }))
    const told = at(3, { algorithm: 'sha512', digest: first.digest })
    const second = await blobs.append('a', bodyOf(Buffer.from('def')), told)
    appended(t, second, Buffer.from('abcdef'), 'another algorithm half-way', 'sha512')
  })

  t.test('digests: an upload can be read in either algorithm, at any of its lengths', async (t) => {
    const place = await openPlace(t, newPlace)
    const blobs = await place.open()
    const bytes = someBytes(2 * mebibyte + 3)
    await blobs.append('a', bodyOf(bytes), at(0))
    for (const algorithm of ['sha256', 'sha512'] as const) {
      for (const size of [0, 1, mebibyte - 1, mebibyte, mebibyte + 1, bytes.length]) {
        const digest = await blobs.digestUpload('a', algorithm, size)
        t.equal(digest, digestOf(bytes.subarray(0, size), algorithm), `${algorithm} of ${size} bytes`)
      }
    }
    const more = blobs.digestUpload('a', 'sha256', bytes.length + 1)
    await refuses(t, more, 'BLOB_UPLOAD_UNKNOWN', 'more than there is')
    await refuses(t, blobs.digestUpload('b', 'sha256', 1), 'BLOB_UPLOAD_UNKNOWN', 'no such upload')
    await refuses(t, blobs.digestUpload('b', 'sha256', 0), 'BLOB_UPLOAD_UNKNOWN', 'no such upload, no bytes')
  })
}

function testCommit(t: Test, newPlace: NewPlace<BlobStore>): void {
  t.test('commit: an upload becomes a blob, in either algorithm, and is no upload any more', async (t) => {
    const place = await openPlace(t, newPlace)
    const blobs = await place.open()
    const bytes = someBytes(100_000)
    for (const algorithm of ['sha256', 'sha512'] as const) {
      const digest = digestOf(bytes, algorithm)
      t.equal(await blobs.open(digest), undefined, `${algorithm}: unknown before`)
      t.equal(await store(blobs, `of-${algorithm}`, bytes, algorithm), digest)
      t.ok((await contentOf(blobs, digest))?.equals(bytes), `${algorithm}: the same bytes afterwards`)
    }
    t.strictSame(await blobs.listUploads(), [], 'no upload is left')
    await refuses(
      t,
      blobs.append('of-sha256', bodyOf(Buffer.from('x')), at(bytes.length)),
      'BLOB_UPLOAD_UNKNOWN',
      'a committed upload takes no more',
    )
  })

  t.test('commit: a lost upload is refused and nothing becomes visible', async (t) => {
    const place = await openPlace(t, newPlace)
    const blobs = await place.open()
    const digest = digestOf(Buffer.from('four'))
    await refuses(t, blobs.commit('never', digest, 4), 'BLOB_UPLOAD_UNKNOWN', 'never begun')
    await blobs.append('short', bodyOf(Buffer.from('fou')), at(0))
    await refuses(t, blobs.commit('short', digest, 4), 'BLOB_UPLOAD_UNKNOWN', 'a byte short')
    await blobs.discard('short')
    await refuses(t, blobs.commit('short', digest, 3), 'BLOB_UPLOAD_UNKNOWN', 'discarded')
    await store(blobs, 'twice', Buffer.from('other'))
    const twice = blobs.commit('twice', digestOf(Buffer.from('other')), 5)
    await refuses(t, twice, 'BLOB_UPLOAD_UNKNOWN', 'committed already')
    t.equal(await blobs.open(digest), undefined, 'no blob came of it')
    await holds(t, blobs, Buffer.from('other'), 'the blob that was committed stays')
  })

  t.test('commit: bytes beyond the size are left-overs of an append and are dropped', async (t) => {
    const place = await openPlace(t, newPlace)
    const blobs = await place.open()
    await blobs.append('a', bodyOf(Buffer.from('acknowledged, and not')), at(0))
    const bytes = Buffer.from('acknowledged')
    t.equal(await blobs.digestUpload('a', 'sha256', bytes.length), digestOf(bytes), 'the digest without them')
    t.equal(await refusalOf(blobs.commit('a', digestOf(bytes), bytes.length)), 'nothing', 'is committed')
    await holds(t, blobs, bytes, 'the blob is without them')
  })

  t.test('commit: a blob that is there is replaced, and its readers go on', async (t) => {
    const place = await openPlace(t, newPlace)
    const blobs = await place.open()
    const bytes = someBytes(3 * mebibyte)
    const digest = await store(blobs, 'first', bytes)
    const reader = await blobs.open(digest)
    if (reader === undefined) throw new Error('the blob is not there')
    const half = await readBlob(reader, 0, mebibyte - 1)
    await store(blobs, 'second', bytes)
    const rest = await readBlob(reader, mebibyte, bytes.length - 1)
    await reader.close()
    t.ok(Buffer.concat([half, rest]).equals(bytes), 'an open reader reads on')
    await holds(t, blobs, bytes, 'a new one reads the same bytes')
    t.strictSame(await blobs.listUploads(), [], 'nothing is left over')
  })

  t.test('commit: one digest from many uploads and stores at once is one whole blob', async (t) => {
    const place = await openPlace(t, newPlace)
    const stores = [await place.open(), await place.open()] as const
    const bytes = someBytes(150_000)
    const digest = digestOf(bytes)
    const ids = Array.from({ length: 50 }, (_, number) => `upload-${number}`)
    await Promise.all(ids.map((id) => stores[0].append(id, bodyOf(bytes), at(0))))
    let isDone = false
    const seen = new Set<number | undefined>()
    const watching = (async () => {
      while (!isDone) {
        const reader = await stores[1].open(digest)
        seen.add(reader?.size)
        await reader?.close()
      }
    })()
    await Promise.all(
      ids.map((id, number) => (stores[number % 2] ?? stores[0]).commit(id, digest, bytes.length)),
    )
    isDone = true
    await watching
    seen.delete(undefined)
    t.ok(
      [...seen].every((size) => size === bytes.length),
      'whoever looked meanwhile saw no blob or all of it',
    )
    await holds(t, stores[1], bytes, 'the blob is whole')
    t.strictSame(await stores[0].listUploads(), [], 'no upload is left')
  })
}

function testUploads(t: Test, newPlace: NewPlace<BlobStore>): void {
  t.test('uploads: discard forgets the bytes, and does nothing where there are none', async (t) => {
    const place = await openPlace(t, newPlace)
    const blobs = await place.open()
    await blobs.append('a', bodyOf(Buffer.from('abc')), at(0))
    await blobs.append('b', bodyOf(Buffer.from('def')), at(0))
    await blobs.discard('a')
    await blobs.discard('a')
    await blobs.discard('never')
    t.strictSame(await blobs.listUploads(), ['b'], 'the other upload stays')
    await refuses(t, blobs.digestUpload('a', 'sha256', 3), 'BLOB_UPLOAD_UNKNOWN', 'its bytes are gone')
    const anew = await blobs.append('a', bodyOf(Buffer.from('new')), at(0))
    appended(t, anew, Buffer.from('new'), 'one of the same name begins anew')
  })

  t.test('uploads: the list has those that hold bytes, on every store of the place', async (t) => {
    const place = await openPlace(t, newPlace)
    const blobs = await place.open()
    t.strictSame(await blobs.listUploads(), [], 'none at first')
    const ids = ['a', 'b', 'c', 'd']
    await Promise.all(ids.map((id) => blobs.append(id, bodyOf(Buffer.from(id)), at(0))))
    await blobs.discard('b')
    await blobs.commit('c', digestOf(Buffer.from('c')), 1)
    t.strictSame((await blobs.listUploads()).sort(), ['a', 'd'], 'without the discarded and the committed')
    t.strictSame((await (await place.open()).listUploads()).sort(), ['a', 'd'], 'the same on another store')
  })

  t.test('uploads: a store opened later goes on with what an earlier one has stored', async (t) => {
    const place = await openPlace(t, newPlace)
    const first = await place.open()
    const bytes = someBytes(90_000)
    const before = await first.append('a', bodyOf(bytes.subarray(0, 50_000)), at(0))
    await store(first, 'b', Buffer.from('a blob'))
    await place.close(first)

    const second = await place.open()
    await holds(t, second, Buffer.from('a blob'), 'the blob is there')
    t.strictSame(await second.listUploads(), ['a'], 'the upload is there')
    const told = at(50_000, { digest: before.digest ?? digestOf(bytes.subarray(0, 50_000)) })
    const after = await second.append('a', bodyOf(bytes.subarray(50_000)), told)
    appended(t, after, bytes, 'and goes on')
    t.equal(await second.digestUpload('a', 'sha256', bytes.length), digestOf(bytes), 'with all its bytes')
    await second.commit('a', digestOf(bytes), bytes.length)
    await holds(t, second, bytes, 'to its end')
  })

  t.test(
    'check: a healthy store passes, any number of times at once, and nothing is left of it',
    async (t) => {
      const place = await openPlace(t, newPlace)
      const blobs = await place.open()
      await Promise.all(Array.from({ length: 20 }, () => blobs.check()))
      t.strictSame(await blobs.listUploads(), [], 'no upload is left')
    },
  )
}

function testReading(t: Test, newPlace: NewPlace<BlobStore>): void {
  t.test('reading: any part of a blob, any number at once, without ending the sink', async (t) => {
    const place = await openPlace(t, newPlace)
    const blobs = await place.open()
    const bytes = someBytes(mebibyte + 11)
    const digest = await store(blobs, 'a', bytes)
    const reader = await blobs.open(digest)
    if (reader === undefined) throw new Error('the blob is not there')
    t.teardown(() => reader.close())
    t.equal(reader.size, bytes.length, 'the size is told')
    const last = bytes.length - 1
    const parts: [number, number][] = [
      [0, last],
      [0, 0],
      [last, last],
      [1, last - 1],
      [32 * 1024 - 1, 32 * 1024],
      [256 * 1024 - 1, 256 * 1024 + 1],
      [mebibyte - 5, last],
    ]
    for (const [start, end] of parts) {
      const part = await readBlob(reader, start, end)
      t.ok(part.equals(bytes.subarray(start, end + 1)), `bytes ${start} to ${end}`)
    }
    const sink = new Collector()
    for (const [start, end] of cut(bytes, 300_000).map((piece, n) => [
      n * 300_000,
      n * 300_000 + piece.length - 1,
    ])) {
      await reader.copyTo(sink, start ?? 0, end ?? 0)
    }
    t.notOk(sink.writableEnded, 'the sink is not ended')
    t.ok(sink.bytes.equals(bytes), 'parts written one after another make the whole')
    const copies = await Promise.all(Array.from({ length: 100 }, () => readBlob(reader)))
    t.ok(
      copies.every((copy) => copy.equals(bytes)),
      'a hundred at once each get all of it',
    )
  })

  t.test('reading: an unknown digest is no blob, whatever uploads hold its bytes', async (t) => {
    const place = await openPlace(t, newPlace)
    const blobs = await place.open()
    const bytes = Buffer.from('not committed')
    await blobs.append('a', bodyOf(bytes), at(0))
    t.equal(await blobs.open(digestOf(bytes)), undefined, 'sha256')
    t.equal(await blobs.open(digestOf(bytes, 'sha512')), undefined, 'sha512')
  })

  t.test('reading: a sink that closes or fails early ends the copy with an error', async (t) => {
    const place = await openPlace(t, newPlace)
    const blobs = await place.open()
    const bytes = someBytes(4 * mebibyte)
    const digest = await store(blobs, 'a', bytes)
    const reader = await blobs.open(digest)
    if (reader === undefined) throw new Error('the blob is not there')
    t.teardown(() => reader.close())
    const copy = (sink: Writable) => within(30_000, 'the copy', reader.copyTo(sink, 0, bytes.length - 1))

    const silent = () => undefined
    const dead = new Writable({ write: (_piece, _encoding, done) => done() }).on('error', silent)
    dead.destroy()
    await t.rejects(copy(dead), Error, 'closed before')

    const stuck: Writable = new Writable({ write: () => setImmediate(() => stuck.destroy()) }).on(
      'error',
      silent,
    )
    await t.rejects(copy(stuck), Error, 'closed while it holds bytes back')

    // A reply whose connection is gone says so, but never calls back for what it was given.
    const lost = new Writable()
    lost.write = () => {
      setImmediate(() => lost.emit('close'))
      return false
    }
    await t.rejects(copy(lost), { message: /closed/ }, 'closed without a word on what it was given')

    const failing = new Writable({ write: (_piece, _encoding, done) => done(new Error('reset')) })
    failing.on('error', silent)
    await t.rejects(copy(failing), Error, 'failing')
    t.ok((await readBlob(reader)).equals(bytes), 'the reader serves the next one')
  })

  t.test('reading: a sink that holds back is given little', async (t) => {
    const place = await openPlace(t, newPlace)
    const blobs = await place.open()
    const bytes = someBytes(8 * mebibyte)
    const digest = await store(blobs, 'a', bytes)
    const reader = await blobs.open(digest)
    if (reader === undefined) throw new Error('the blob is not there')
    t.teardown(() => reader.close())
    let given = 0
    let resume: (() => void) | undefined
    const sink = new Writable({
      highWaterMark: 1,
      write(piece: Buffer, _encoding, done) {
        given += piece.length
        resume = done
      },
    })
    const copying = reader.copyTo(sink, 0, bytes.length - 1)
    await eventually('the first bytes', () => resume !== undefined)
    for (let turn = 0; turn < 50; turn++) await new Promise((resolve) => setImmediate(resolve))
    t.ok(given + sink.writableLength <= 2 * mebibyte, 'while it takes nothing, little is handed over')
    const finished = copying.then(() => true)
    await eventually('the end', () => {
      const next = resume
      resume = undefined
      next?.()
      return given === bytes.length
    })
    resume?.()
    t.equal(await finished, true, 'when it takes more, all of it comes')
  })
}
