import t, { type Test } from 'tap'
import {
  blob,
  eventually,
  everyReplyKeptTheRules,
  finishUpload,
  image,
  isError,
  newRepository,
  openBlobFiles,
  openUpload,
  push,
  pushBlobs,
  RawConnection,
  type Reply,
  randomBlob,
  randomDigest,
  sha512,
  startServer,
} from './harness.js'

const server = await startServer(t)
const repository = newRepository('blobs')
const content = randomBlob(2048)
const empty = blob('')
await pushBlobs(server, repository, content, empty)
const path = `/v2/${repository}/blobs/${content.digest}`

const get = (headers: Record<string, string> = {}, method = 'GET', target = path) =>
  server.request(method, target, { headers })

/** Asserts a part of the 2048-byte blob (BL-04). */
function isPart(t: Test, reply: Reply, from: number, to: number) {
  t.equal(reply.status, 206, `${from}-${to}: ${reply.text.slice(0, 100)}`)
  t.equal(reply.header('content-range'), `bytes ${from}-${to}/2048`)
  t.equal(reply.header('content-length'), String(to - from + 1))
  t.ok(reply.body.equals(content.bytes.subarray(from, to + 1)), `the bytes ${from}-${to}`)
}

function isWhole(t: Test, reply: Reply, what: string) {
  t.equal(reply.status, 200, what)
  t.notOk(reply.headers['content-range'], what)
  t.ok(reply.body.equals(content.bytes), what)
}

t.test('BL-01, BL-03: GET and HEAD of a blob with all their headers', async (t) => {
  for (const method of ['GET', 'HEAD']) {
    const reply = await get({}, method)
    t.equal(reply.status, 200)
    t.equal(reply.header('content-length'), '2048')
    t.equal(reply.header('content-type'), 'application/octet-stream')
    t.equal(reply.header('docker-content-digest'), content.digest)
    t.equal(reply.header('etag'), `"${content.digest}"`)
    t.equal(reply.header('accept-ranges'), 'bytes')
    t.match(reply.header('cache-control'), /max-age=31536000/)
    t.equal(reply.body.length, method === 'GET' ? 2048 : 0)
  }
  t.ok((await get()).body.equals(content.bytes))
})

t.test('BL-01, T-07: a sha512 blob answers with its own digest', async (t) => {
  const digest = sha512(content.bytes)
  await finishUpload(server, await openUpload(server, repository), digest, content.bytes)
  const reply = await get({}, 'GET', `/v2/${repository}/blobs/${digest}`)
  t.equal(reply.header('docker-content-digest'), digest)
  t.equal(reply.header('etag'), `"${digest}"`)
  t.ok(reply.body.equals(content.bytes))
  t.equal((await get()).header('docker-content-digest'), content.digest)
})

t.test('BL-02, S20: a blob is visible in the repositories that hold it and nowhere else', async (t) => {
  const other = newRepository('blobs')
  const known = randomDigest()
  await pushBlobs(server, other, randomBlob())
  for (const name of [other, 'never/pushed']) {
    for (const method of ['GET', 'HEAD']) {
      const held = await get({}, method, `/v2/${name}/blobs/${content.digest}`)
      const random = await get({}, method, `/v2/${name}/blobs/${known}`)
      t.equal(held.status, 404)
      t.equal(held.code, random.code, 'no trace that the blob exists elsewhere')
      t.equal(held.header('content-length'), random.header('content-length'))
    }
    const range = await get({ Range: 'bytes=0-1' }, 'GET', `/v2/${name}/blobs/${content.digest}`)
    t.equal(range.status, 404)
    const etag = { 'If-None-Match': `"${content.digest}"` }
    t.equal((await get(etag, 'GET', `/v2/${name}/blobs/${content.digest}`)).status, 404)
  }
  isError(t, await get({}, 'GET', `/v2/${other}/blobs/${content.digest}`), 404, 'BLOB_UNKNOWN')
})

t.test('BL-04: single ranges give their part', async (t) => {
  const ranges: [string, number, number][] = [
    ['0-0', 0, 0],
    ['0-99', 0, 99],
    ['500-1499', 500, 1499],
    ['500-', 500, 2047],
    ['-500', 1548, 2047],
    ['-1', 2047, 2047],
    ['0-', 0, 2047],
    ['2047-', 2047, 2047],
    ['2000-5000', 2000, 2047],
    ['0-2047', 0, 2047],
    ['-5000', 0, 2047],
    ['-2048', 0, 2047],
    ['0-99999999999999999999', 0, 2047],
  ]
  for (const [range, from, to] of ranges) isPart(t, await get({ Range: `bytes=${range}` }), from, to)
})

t.test('BL-04: the letter case of the unit and white space around a range do not matter', async (t) => {
  isPart(t, await get({ Range: 'bytes=10-19 ' }), 10, 19)
  isPart(t, await get({ Range: 'Bytes=10-19' }), 10, 19)
})

t.test('BL-05: a range that cannot be satisfied gives 416 and the size', async (t) => {
  for (const range of ['5000-10000', '2048-', '2048-2048', '500-0', '-0', '99999999999999999999-']) {
    const reply = await get({ Range: `bytes=${range}` })
    isError(t, reply, 416, 'RANGE_INVALID', range)
    t.equal(reply.header('content-range'), 'bytes */2048', range)
  }
})

t.test('BL-05: what is not a range of bytes is ignored', async (t) => {
  for (const range of [
    'items=0-1',
    'bytes',
    'bytes=',
    'bytes=a-b',
    'bytes=1',
    '0-1',
    'bytes:0-1',
    'bytes=--1',
  ])
    isWhole(t, await get({ Range: range }), range)
})

t.test('BL-06, T-05: a pull goes on where it was cut', async (t) => {
  const first = await get({ Range: 'bytes=0-1000' })
  const rest = await get({ Range: 'bytes=1001-' })
  isPart(t, rest, 1001, 2047)
  t.ok(Buffer.concat([first.body, rest.body]).equals(content.bytes))
})

/** The parts of a multipart/byteranges answer, in order. */
function partsOf(reply: Reply): { range: string; type: string; body: string }[] {
  const boundary = /^multipart\/byteranges; boundary="?([A-Za-z0-9]+)"?$/.exec(
    reply.header('content-type'),
  )?.[1]
  if (boundary === undefined) throw new Error(`Content-Type: ${reply.header('content-type')}`)
  const text = `\r\n${reply.body.toString('latin1').replace(/^\r\n/, '')}`
  const pieces = text.split(`\r\n--${boundary}`)
  const end = pieces.pop()
  if (pieces.shift() !== '' || !end?.startsWith('--')) throw new Error('not delimited as multipart')
  return pieces.map((piece) => {
    const at = piece.indexOf('\r\n\r\n')
    const head = piece.slice(0, at)
    return {
      range: /content-range: *(.*)/i.exec(head)?.[1] ?? '',
      type: /content-type: *(.*)/i.exec(head)?.[1] ?? '',
      body: piece.slice(at + 4),
    }
  })
}

t.test('BL-07, T-33: several ranges give one part each, in the order asked', async (t) => {
  const cases: [number, number][][] = [
    [
      [0, 99],
      [200, 299],
    ],
    [
      [200, 299],
      [0, 99],
    ], // backwards
    [
      [0, 99],
      [100, 199],
    ], // adjacent
    [
      [0, 99],
      [50, 149],
      [50, 149],
    ], // overlapping and repeated
    [
      [2047, 2047],
      [0, 0],
      [0, 2047],
    ],
  ]
  for (const ranges of cases) {
    const reply = await get({ Range: `bytes=${ranges.map(([from, to]) => `${from}-${to}`).join(',')}` })
    t.equal(reply.status, 206)
    t.equal(reply.header('content-length'), String(reply.body.length))
    t.same(
      partsOf(reply),
      ranges.map(([from, to]) => ({
        range: `bytes ${from}-${to}/2048`,
        type: 'application/octet-stream',
        body: content.bytes.subarray(from, to + 1).toString('latin1'),
      })),
    )
  }
  const mixed = await get({ Range: 'bytes=-10 , 0-4,\t2000-9999' })
  t.same(
    partsOf(mixed).map((part) => part.range),
    ['bytes 2038-2047/2048', 'bytes 0-4/2048', 'bytes 2000-2047/2048'],
  )
})

t.test(
  'BL-07: one range of several forms is no multipart; a boundary never stands in the content',
  async (t) => {
    const one = await get({ Range: 'bytes=5-6' })
    t.equal(one.header('content-type'), 'application/octet-stream')
    const [first, second] = await Promise.all([
      get({ Range: 'bytes=0-1,4-5' }),
      get({ Range: 'bytes=0-1,4-5' }),
    ])
    for (const reply of [first, second]) t.equal(partsOf(reply).length, 2)
  },
)

t.test('BL-07: a thousand ranges are served, more are refused with 400', async (t) => {
  const ranges = (count: number) => `bytes=${Array.from({ length: count }, (_, n) => `${n}-${n}`).join(',')}`
  const thousand = await get({ Range: ranges(1000) })
  t.equal(thousand.status, 206)
  t.equal(partsOf(thousand).length, 1000)
  isError(t, await get({ Range: ranges(1001) }), 400, 'RANGE_INVALID')
})

t.test('S115, BL-07: of several ranges those that can be satisfied are sent', async (t) => {
  for (const [ranges, from, to] of [
    ['0-9,999999-', 0, 9],
    ['999999-,0-9', 0, 9],
    ['-0,5-6', 5, 6],
    ['5000-6000,2-2,7000-', 2, 2],
  ] as const) {
    isPart(t, await get({ Range: `bytes=${ranges}` }), from, to)
  }
  const two = await get({ Range: 'bytes=0-1,999999-,4-5' })
  t.equal(two.status, 206)
  t.match(two.header('content-type'), /^multipart\/byteranges/)
  t.equal(two.text.match(/Content-Range: bytes /g)?.length, 2)
  isError(t, await get({ Range: 'bytes=0-9,6-5' }), 416, 'RANGE_INVALID', 'one that ends before it starts')
})

t.test('BL-07: a list in which no range can be satisfied gives 416', async (t) => {
  const reply = await get({ Range: 'bytes=5000-,6000-7000' })
  isError(t, reply, 416, 'RANGE_INVALID')
  t.equal(reply.header('content-range'), 'bytes */2048')
})

t.test('BL-08: If-Range with the entity tag gives the part, anything else the whole', async (t) => {
  const Range = 'bytes=100-199'
  isPart(t, await get({ Range, 'If-Range': `"${content.digest}"` }), 100, 199)
  const others = [
    `"${randomDigest()}"`,
    `W/"${content.digest}"`,
    new Date().toUTCString(),
    '*',
    'garbage',
    '""',
  ]
  for (const other of others) isWhole(t, await get({ Range, 'If-Range': other }), `If-Range: ${other}`)
})

t.test('BL-09: If-None-Match gives 304 with the entity tag', async (t) => {
  for (const condition of [`"${content.digest}"`, content.digest, `W/"${content.digest}"`, '*']) {
    for (const method of ['GET', 'HEAD']) {
      const reply = await get({ 'If-None-Match': condition, Range: 'bytes=0-1' }, method)
      t.equal(reply.status, 304, condition)
      t.equal(reply.header('etag'), `"${content.digest}"`)
      t.equal(reply.body.length, 0)
    }
  }
  isWhole(t, await get({ 'If-None-Match': `"${randomDigest()}"` }), 'another tag')
})

t.test('BL-10: HEAD ignores a Range', async (t) => {
  for (const range of ['bytes=0-9', 'bytes=0-1,4-5', 'bytes=5000-']) {
    const reply = await get({ Range: range }, 'HEAD')
    t.equal(reply.status, 200, range)
    t.equal(reply.header('content-length'), '2048', range)
  }
})

t.test('BL-11, T-35: the empty blob with any Range gives 200 and nothing', async (t) => {
  for (const range of [
    undefined,
    'bytes=0-',
    'bytes=0-0',
    'bytes=-1',
    'bytes=5-9',
    'bytes=0-1,2-3',
    'bytes=9-1',
  ]) {
    const target = `/v2/${repository}/blobs/${empty.digest}`
    const reply = await get(range === undefined ? {} : { Range: range }, 'GET', target)
    t.equal(reply.status, 200, range ?? 'no range')
    t.equal(reply.header('content-length'), '0')
    t.equal(reply.body.length, 0)
  }
})

t.test(
  'BL-12, T-34, BL-14: open-ended ranges that are cut short free their file, and are no errors',
  async (t) => {
    const big = randomBlob(8 * 1024 * 1024)
    await pushBlobs(server, repository, big)
    const idle = () => openBlobFiles(server.pid).filter((target) => target.includes('/blobs/')).length
    t.equal(idle(), 0)
    const logged = server.logs().length
    for (let round = 0; round < 20; round++) {
      const connection = await RawConnection.open(server)
      const from = round * 400_000
      await connection.request(`GET /v2/${repository}/blobs/${big.digest}`, [`Range: bytes=${from}-`])
      await eventually('the first bytes', () => connection.text.length > 1000)
      t.match(
        connection.text,
        new RegExp(`^HTTP/1.1 206 [^]*Content-Range: bytes ${from}-8388607/8388608`, 'i'),
      )
      await connection.abort()
    }
    await eventually('no file is open', () => openBlobFiles(server.pid).length === 0)
    const errors = server
      .logs()
      .slice(logged)
      .filter((line) => Number(line.level) >= 50)
    t.same(errors, [], 'nothing logged as an error')
  },
)

t.test('BL-13: a large blob comes with its length, not in chunks, and whole', async (t) => {
  const big = randomBlob(5_000_001)
  await pushBlobs(server, repository, big)
  const reply = await get({}, 'GET', `/v2/${repository}/blobs/${big.digest}`)
  t.equal(reply.header('content-length'), '5000001')
  t.notOk(reply.headers['transfer-encoding'])
  t.ok(reply.body.equals(big.bytes))
  const part = await get({ Range: 'bytes=1234567-4567890' }, 'GET', `/v2/${repository}/blobs/${big.digest}`)
  t.ok(part.body.equals(big.bytes.subarray(1234567, 4567891)))
})

t.test('BL-13: many read one large blob at once, each gets it whole', async (t) => {
  const big = randomBlob(3_000_000)
  await pushBlobs(server, repository, big)
  const reads = Array.from({ length: 16 }, (_, n) =>
    get(n % 2 ? { Range: `bytes=${n}-` } : {}, 'GET', `/v2/${repository}/blobs/${big.digest}`),
  )
  for (const [n, reply] of (await Promise.all(reads)).entries())
    t.ok(reply.body.equals(big.bytes.subarray(n % 2 ? n : 0)))
})

t.test('BL-15: a client that reads slowly gets all of it', async (t) => {
  const big = randomBlob(4_000_000)
  await pushBlobs(server, repository, big)
  const connection = await RawConnection.open(server)
  connection.socket.pause()
  await connection.request(`GET /v2/${repository}/blobs/${big.digest}`, ['Connection: close'])
  await get()
  connection.socket.resume()
  await connection.closed
  const reply = connection.replies()[0]
  t.equal(reply?.status, 200)
  t.ok(Buffer.from(reply?.body ?? '', 'latin1').equals(big.bytes))
})

t.test('BL-17: manifests are not among the blobs', async (t) => {
  const name = newRepository('blobs')
  const manifest = image()
  await push(server, name, 'x', manifest)
  isError(t, await get({}, 'GET', `/v2/${name}/blobs/${manifest.digest}`), 404, 'BLOB_UNKNOWN')
  const mount = await server.request(
    'POST',
    `/v2/${newRepository('blobs')}/blobs/uploads/?mount=${manifest.digest}&from=${name}`,
  )
  t.equal(mount.status, 202, 'nor can they be mounted')
})

t.test('BL-17: the same bytes can be a manifest and a blob of one repository', async (t) => {
  const name = newRepository('blobs')
  const manifest = image()
  await push(server, name, 'x', manifest)
  await pushBlobs(server, name, manifest)
  const reply = await get({}, 'GET', `/v2/${name}/blobs/${manifest.digest}`)
  t.ok(reply.body.equals(manifest.bytes))
  t.equal(reply.header('content-type'), 'application/octet-stream')
  const stored = await get({}, 'GET', `/v2/${name}/manifests/${manifest.digest}`)
  t.equal(stored.header('content-type'), manifest.mediaType)
})

t.test('BL-01: conditions on the time of change are not taken for a match', async (t) => {
  const future = new Date(Date.now() + 1e9).toUTCString()
  const reply = await get({ 'If-Modified-Since': future, 'If-Unmodified-Since': 'garbage' })
  isWhole(t, reply, 'If-Modified-Since')
})

everyReplyKeptTheRules(t)
