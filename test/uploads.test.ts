import { statSync } from 'node:fs'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import {
  blob,
  type Content,
  eventually,
  everyReplyKeptTheRules,
  filesBelow,
  finishUpload,
  isError,
  newRepository,
  OCTETS,
  openUpload,
  pushBlobs,
  RawConnection,
  type Reply,
  randomBlob,
  randomDigest,
  resumeUpload,
  type Server,
  sha512,
  startServer,
  UUID,
  withQuery,
} from './harness.js'

const server = await startServer(t)
const uploadFiles = (at: Server = server) => filesBelow(join(at.data, 'uploads'))

/** Asserts that the repository has the blob, whole. */
async function hasBlob(t: Test, repository: string, content: Content, digest = content.digest) {
  const reply = await server.request('GET', `/v2/${repository}/blobs/${digest}`)
  t.equal(reply.status, 200, `${digest} is there`)
  t.ok(reply.body.equals(content.bytes), `${digest} has its bytes`)
}

async function hasNoBlob(t: Test, repository: string, digest: string) {
  isError(t, await server.request('GET', `/v2/${repository}/blobs/${digest}`), 404, 'BLOB_UNKNOWN')
}

/** Asserts the answer to a finished upload (UP-21). */
function isCreated(t: Test, reply: Reply, repository: string, digest: string) {
  t.equal(reply.status, 201, reply.text)
  t.equal(reply.header('location'), `/v2/${repository}/blobs/${digest}`)
  t.equal(reply.header('docker-content-digest'), digest)
  t.equal(reply.header('content-length'), '0')
  t.equal(reply.body.length, 0)
}

/** Asserts the answer to a step of a session that has `stored` bytes (UP-01, UP-40, UP-70). */
function isAt(t: Test, reply: Reply, status: number, repository: string, stored: number) {
  t.equal(reply.status, status, reply.text)
  t.match(reply.header('location'), new RegExp(`^/v2/${repository}/blobs/uploads/${UUID.source}(\\?.*)?$`))
  t.equal(reply.header('range'), `0-${Math.max(stored - 1, 0)}`)
  t.match(reply.header('docker-upload-uuid'), new RegExp(`^${UUID.source}$`))
  t.ok(reply.header('location').includes(reply.header('docker-upload-uuid')))
  if (status === 202) t.equal(reply.header('content-length'), '0')
}

/** Asserts a refused chunk: the answer says where the upload stands, so that clients can go on (UP-42). */
function isOutOfOrder(t: Test, reply: Reply, repository: string, stored: number) {
  isError(t, reply, 416, 'RANGE_INVALID')
  isAt(t, reply, 416, repository, stored)
}

const patch = (location: string, body: Buffer, range?: string) =>
  server.request('PATCH', location, {
    body,
    headers: { 'Content-Type': OCTETS, ...(range === undefined ? {} : { 'Content-Range': range }) },
  })

t.test('UP-01, UP-03, UP-04: POST opens a session and says where', async (t) => {
  const repository = newRepository('open')
  const reply = await server.request('POST', `/v2/${repository}/blobs/uploads/`)
  isAt(t, reply, 202, repository, 0)
  t.equal(reply.header('range'), '0-0')
  t.notOk(reply.headers['oci-chunk-min-length'], 'a disk needs no minimum')
})

t.test('UP-02: all the forms of "no body" open a session', async (t) => {
  const repository = newRepository('open')
  const path = `/v2/${repository}/blobs/uploads/`
  const length = await server.request('POST', path, { body: '' })
  isAt(t, length, 202, repository, 0)
  const json = await server.request('POST', path, {
    headers: { 'Content-Type': 'application/json' },
    body: '',
  })
  isAt(t, json, 202, repository, 0)
  const chunked = await server.request('POST', path, { chunked: true })
  isAt(t, chunked, 202, repository, 0)
  const connection = await RawConnection.open(server)
  await connection.request(`POST ${path}`)
  t.equal((await connection.reply()).status, 202, 'neither length nor transfer coding')
  await connection.close()
})

t.test('UP-05: an upload opened for an algorithm can be closed with it, or with another', async (t) => {
  const repository = newRepository('algorithm')
  for (const algorithm of ['sha256', 'sha512']) {
    for (const close of ['sha256', 'sha512']) {
      const content = randomBlob(3000)
      const digest = close === 'sha256' ? content.digest : sha512(content.bytes)
      const location = await openUpload(server, repository, `?digest-algorithm=${algorithm}`)
      const patched = await patch(location, content.bytes.subarray(0, 1000))
      t.equal(patched.status, 202)
      const path = withQuery(patched.header('location'), `digest=${encodeURIComponent(digest)}`)
      const put = await server.request('PUT', path, { body: content.bytes.subarray(1000) })
      isCreated(t, put, repository, digest)
      await hasBlob(t, repository, content, digest)
    }
  }
  for (const unknown of ['md5', 'sha1', 'SHA256', 'sha384', '', '../sha256', '__proto__', 'constructor']) {
    const path = `/v2/${repository}/blobs/uploads/?digest-algorithm=${unknown}`
    isError(t, await server.request('POST', path), 400, 'DIGEST_INVALID')
  }
})

t.test('UP-05: an upload opened without saying the algorithm takes sha512, in every form', async (t) => {
  const repository = newRepository('sha512')
  const single = randomBlob(700)
  const path = `/v2/${repository}/blobs/uploads/?digest=${sha512(single.bytes)}`
  isCreated(t, await server.request('POST', path, { body: single.bytes }), repository, sha512(single.bytes))
  const monolithic = randomBlob(700)
  const put = await finishUpload(
    server,
    await openUpload(server, repository),
    sha512(monolithic.bytes),
    monolithic.bytes,
  )
  isCreated(t, put, repository, sha512(monolithic.bytes))
  const streamed = randomBlob(200_000)
  const patched = await patch(await openUpload(server, repository), streamed.bytes)
  isCreated(
    t,
    await finishUpload(server, patched.header('location'), sha512(streamed.bytes)),
    repository,
    sha512(streamed.bytes),
  )
  for (const content of [single, monolithic, streamed])
    await hasBlob(t, repository, content, sha512(content.bytes))
})

t.test('UP-09, S22: a session answers in its own repository only', async (t) => {
  const repository = newRepository('mine')
  const content = randomBlob(10)
  const location = await openUpload(server, repository)
  await patch(location, content.bytes.subarray(0, 4))
  for (const other of [newRepository('other'), 'mine', `${repository}/x`]) {
    const foreign = location.replace(`/v2/${repository}/`, `/v2/${other}/`)
    for (const method of ['GET', 'HEAD', 'PATCH', 'DELETE'])
      isError(t, await server.request(method, foreign, { body: '' }), 404, 'BLOB_UPLOAD_UNKNOWN')
    const put = withQuery(foreign, `digest=${content.digest}`)
    isError(t, await server.request('PUT', put, { body: content.bytes }), 404, 'BLOB_UPLOAD_UNKNOWN')
  }
  isCreated(
    t,
    await finishUpload(server, location, content.digest, content.bytes.subarray(4)),
    repository,
    content.digest,
  )
})

t.test(
  'UP-20, UP-21: POST then PUT with the whole body makes the blob, readable at its Location',
  async (t) => {
    const repository = newRepository('monolithic')
    const content = randomBlob(100_000)
    const location = await openUpload(server, repository)
    const reply = await server.request('PUT', withQuery(location, `digest=${content.digest}`), {
      headers: { 'Content-Type': OCTETS },
      body: content.bytes,
    })
    isCreated(t, reply, repository, content.digest)
    t.ok((await server.request('GET', reply.header('location'))).body.equals(content.bytes))
  },
)

t.test('UP-22: POST with the digest and the whole body makes the blob in one request', async (t) => {
  const repository = newRepository('single')
  const content = randomBlob(5000)
  const path = `/v2/${repository}/blobs/uploads/?digest=${encodeURIComponent(content.digest)}`
  isCreated(t, await server.request('POST', path, { body: content.bytes }), repository, content.digest)
  await hasBlob(t, repository, content)
})

t.test('UP-22: POST with a digest and no body is a plain open', async (t) => {
  const repository = newRepository('single')
  const content = randomBlob(50)
  const path = `/v2/${repository}/blobs/uploads/?digest=${content.digest}`
  for (const chunked of [false, true]) {
    const reply = await server.request('POST', path, chunked ? { chunked } : { body: '' })
    isAt(t, reply, 202, repository, 0)
    await hasNoBlob(t, repository, content.digest)
    await finishUpload(server, reply.header('location'), content.digest, content.bytes)
    await server.request('DELETE', `/v2/${repository}/blobs/${content.digest}`)
  }
})

t.test('UP-23, E-01: a body that does not hash to its digest gives 400 and leaves nothing', async (t) => {
  const repository = newRepository('wrong')
  for (const algorithm of ['sha256', 'sha512']) {
    const content = randomBlob(2000)
    const real = algorithm === 'sha256' ? content.digest : sha512(content.bytes)
    const wrong = algorithm === 'sha256' ? randomDigest() : sha512(randomBlob().bytes)
    const single = `/v2/${repository}/blobs/uploads/?digest=${wrong}`
    isError(t, await server.request('POST', single, { body: content.bytes }), 400, 'DIGEST_INVALID')
    const put = withQuery(await openUpload(server, repository), `digest=${wrong}`)
    isError(t, await server.request('PUT', put, { body: content.bytes }), 400, 'DIGEST_INVALID')
    const location = (await patch(await openUpload(server, repository), content.bytes)).header('location')
    const close = withQuery(location, `digest=${wrong}`)
    isError(t, await server.request('PUT', close, { body: '' }), 400, 'DIGEST_INVALID')
    await hasNoBlob(t, repository, wrong)
    await hasNoBlob(t, repository, real)
  }
})

t.test('UP-23: bad syntax, unknown algorithms and a missing digest give 400', async (t) => {
  const repository = newRepository('wrong')
  const content = randomBlob(20)
  const hex = content.digest.slice(7)
  const bad = ['sha256:bad', hex, `sha256:${hex.toUpperCase()}`, `md5:${hex}`, `blake3:${hex}`, '']
  for (const digest of [...bad, `sha256:${hex}/../x`, 'sha256:', `sha256:${hex}%00`]) {
    const location = await openUpload(server, repository)
    const reply = await server.request('PUT', withQuery(location, `digest=${digest}`), {
      body: content.bytes,
    })
    isError(t, reply, 400, 'DIGEST_INVALID', `digest=${digest}`)
    if (digest === '') continue
    const single = `/v2/${repository}/blobs/uploads/?digest=${digest}`
    isError(t, await server.request('POST', single, { body: content.bytes }), 400, 'DIGEST_INVALID')
  }
  const location = await openUpload(server, repository)
  isError(t, await server.request('PUT', location, { body: content.bytes }), 400, 'DIGEST_INVALID')
  await hasNoBlob(t, repository, content.digest)
})

t.test('UP-24: a mismatch drops the session and its bytes', async (t) => {
  const repository = newRepository('drop')
  const before = uploadFiles().length
  const location = await openUpload(server, repository)
  const patched = await patch(location, randomBlob(4000).bytes)
  t.equal(uploadFiles().length, before + 1, 'the bytes are on disk')
  const id = patched.header('docker-upload-uuid')
  const put = withQuery(patched.header('location'), `digest=${randomDigest()}`)
  isError(t, await server.request('PUT', put, { body: '' }), 400, 'DIGEST_INVALID')
  isError(t, await server.request('GET', location), 404, 'BLOB_UPLOAD_UNKNOWN')
  await eventually('the bytes are gone', () => !uploadFiles().some((file) => file.includes(id)))
})

t.test('UP-25, R31: a PUT whose client dies commits nothing, and the upload can be finished', async (t) => {
  const repository = newRepository('died')
  const content = randomBlob(50_000)
  const location = await openUpload(server, repository)
  await patch(location, content.bytes.subarray(0, 10_000))
  const connection = await RawConnection.open(server)
  const target = withQuery(location, `digest=${content.digest}`)
  await connection.request(`PUT ${target}`, ['Content-Length: 40000'], content.bytes.subarray(10_000, 30_000))
  await connection.abort()
  await hasNoBlob(t, repository, content.digest)
  isCreated(t, await resumeUpload(server, location, content), repository, content.digest)
  await hasBlob(t, repository, content)
})

t.test('UP-25: a single POST whose client dies commits nothing', async (t) => {
  const repository = newRepository('died')
  const content = randomBlob(50_000)
  const connection = await RawConnection.open(server)
  const path = `/v2/${repository}/blobs/uploads/?digest=${content.digest}`
  await connection.request(`POST ${path}`, ['Content-Length: 50000'], content.bytes.subarray(0, 49_999))
  await connection.abort()
  await hasNoBlob(t, repository, content.digest)
  await pushBlobs(server, repository, content)
  await hasBlob(t, repository, content)
})

t.test('UP-26: chunked bodies work on POST, PATCH and PUT', async (t) => {
  const repository = newRepository('chunked')
  const first = randomBlob(70_000)
  const post = `/v2/${repository}/blobs/uploads/?digest=${first.digest}`
  isCreated(
    t,
    await server.request('POST', post, { body: first.bytes, chunked: true }),
    repository,
    first.digest,
  )
  const second = randomBlob(70_000)
  const opened = await openUpload(server, repository)
  const patched = await server.request('PATCH', opened, {
    body: second.bytes.subarray(0, 1),
    chunked: true,
  })
  isAt(t, patched, 202, repository, 1)
  const put = withQuery(patched.header('location'), `digest=${second.digest}`)
  const reply = await server.request('PUT', put, { body: second.bytes.subarray(1), chunked: true })
  isCreated(t, reply, repository, second.digest)
  await hasBlob(t, repository, first)
  await hasBlob(t, repository, second)
})

t.test('UP-27, BL-11: the empty blob can be pushed in every way and read', async (t) => {
  const empty = blob('')
  const path = (repository: string, query = '') => `/v2/${repository}/blobs/uploads/${query}`
  const ways: Record<string, (repository: string) => Promise<Reply>> = {
    'single POST': (repository) =>
      server.request('POST', path(repository, `?digest=${empty.digest}`), { body: '' }),
    'chunked single POST': (repository) =>
      server.request('POST', path(repository, `?digest=${empty.digest}`), { chunked: true }),
    'POST and PUT': async (repository) =>
      finishUpload(server, await openUpload(server, repository), empty.digest),
    'chunked PUT': async (repository) => {
      const location = withQuery(await openUpload(server, repository), `digest=${empty.digest}`)
      return server.request('PUT', location, { chunked: true })
    },
    'empty PATCH': async (repository) => {
      const patched = await patch(await openUpload(server, repository), Buffer.alloc(0))
      return finishUpload(server, patched.header('location'), empty.digest)
    },
  }
  for (const [name, way] of Object.entries(ways)) {
    await t.test(name, async (t) => {
      const repository = newRepository('empty')
      isCreated(t, await way(repository), repository, empty.digest)
      const reply = await server.request('GET', `/v2/${repository}/blobs/${empty.digest}`)
      t.equal(reply.status, 200)
      t.equal(reply.header('content-length'), '0')
    })
  }
})

t.test('UP-29, R20: a blob that is there can be pushed again, also by many at once', async (t) => {
  const repository = newRepository('again')
  const content = randomBlob(300_000)
  const path = `/v2/${repository}/blobs/uploads/?digest=${content.digest}`
  const pushes = Array.from({ length: 8 }, () =>
    server.request('POST', path, { body: content.bytes, fresh: true }),
  )
  for (const reply of await Promise.all(pushes)) isCreated(t, reply, repository, content.digest)
  const readers = Array.from({ length: 4 }, () =>
    server.request('GET', `/v2/${repository}/blobs/${content.digest}`),
  )
  isCreated(t, await server.request('POST', path, { body: content.bytes }), repository, content.digest)
  for (const reply of await Promise.all(readers)) t.ok(reply.body.equals(content.bytes))
})

t.test('UP-40, UP-44: a stream without Content-Range appends, in one PATCH or several', async (t) => {
  const repository = newRepository('stream')
  const content = randomBlob(100_000)
  let location = await openUpload(server, repository)
  for (const [from, to] of [
    [0, 1],
    [1, 40_000],
    [40_000, 100_000],
  ] as const) {
    const reply = await server.request('PATCH', location, {
      body: content.bytes.subarray(from, to),
      chunked: true,
    })
    isAt(t, reply, 202, repository, to)
    location = reply.header('location')
  }
  isCreated(t, await finishUpload(server, location, content.digest), repository, content.digest)
  await hasBlob(t, repository, content)
})

t.test('UP-40, UP-03: chunks with Content-Range are taken in order', async (t) => {
  const repository = newRepository('chunks')
  const content = randomBlob(1000)
  let location = await openUpload(server, repository)
  for (let at = 0; at < 1000; at += 250) {
    const reply = await patch(location, content.bytes.subarray(at, at + 250), `${at}-${at + 249}`)
    isAt(t, reply, 202, repository, at + 250)
    location = reply.header('location')
  }
  isCreated(t, await finishUpload(server, location, content.digest), repository, content.digest)
  await hasBlob(t, repository, content)
})

t.test('UP-03, UP-04: chunks of one byte are taken, and the first leaves the Range at 0-0', async (t) => {
  const repository = newRepository('chunks')
  const content = randomBlob(3)
  const location = await openUpload(server, repository)
  for (let at = 0; at < 3; at++) {
    const reply = await patch(location, content.bytes.subarray(at, at + 1), `${at}-${at}`)
    isAt(t, reply, 202, repository, at + 1)
  }
  isCreated(t, await finishUpload(server, location, content.digest), repository, content.digest)
})

t.test('UP-41: the form of RFC 9110 is taken for a Content-Range too', async (t) => {
  const repository = newRepository('rfc')
  const content = randomBlob(30)
  const location = await openUpload(server, repository)
  isAt(t, await patch(location, content.bytes.subarray(0, 10), 'bytes 0-9/*'), 202, repository, 10)
  isAt(t, await patch(location, content.bytes.subarray(10, 20), 'bytes 10-19/30'), 202, repository, 20)
  isAt(t, await patch(location, content.bytes.subarray(20), '20-29'), 202, repository, 30)
  isCreated(t, await finishUpload(server, location, content.digest), repository, content.digest)
})

t.test(
  'UP-42, R28: a chunk that does not start at the offset is refused with 416 and the session goes on',
  async (t) => {
    const repository = newRepository('order')
    const content = randomBlob(300)
    const location = await openUpload(server, repository)
    const { bytes } = content
    isOutOfOrder(t, await patch(location, bytes.subarray(100, 200), '100-199'), repository, 0)
    isAt(t, await patch(location, bytes.subarray(0, 100), '0-99'), 202, repository, 100)
    for (const [from, to] of [
      [0, 99], // the same chunk again
      [200, 299], // a gap
      [50, 149], // an overlap
      [99, 198],
      [101, 200],
    ] as const) {
      const reply = await patch(location, bytes.subarray(from, to + 1), `${from}-${to}`)
      isOutOfOrder(t, reply, repository, 100)
      isAt(t, await server.request('GET', location), 204, repository, 100)
    }
    isAt(t, await patch(location, bytes.subarray(100), '100-299'), 202, repository, 300)
    isCreated(t, await finishUpload(server, location, content.digest), repository, content.digest)
    await hasBlob(t, repository, content)
  },
)

t.test('UP-43: a Content-Range that is malformed or disagrees with the length is refused', async (t) => {
  const repository = newRepository('length')
  const content = randomBlob(40)
  const location = await openUpload(server, repository)
  await patch(location, content.bytes.subarray(0, 10), '0-9')
  const ten = content.bytes.subarray(10, 20)
  const cases = [
    ...[
      '10-18',
      '10-20',
      '10-9',
      '20-10',
      '10',
      '-19',
      '10-',
      '10-19-29',
      'x-y',
      '10-1e1',
      '10,19',
      '+10-19',
    ],
    ...['0x0a-0x13', '10-99999999999999999999', '-10-19', 'items 10-19', 'bytes=10-19', '1O-19'],
    ...['99999999999999999999-99999999999999999999', '10 - 19', ''],
  ]
  for (const range of cases) {
    for (const chunked of [false, true]) {
      const reply = await server.request('PATCH', location, {
        headers: { 'Content-Range': range },
        body: ten,
        chunked,
      })
      const what = `"${range}"${chunked ? ' chunked' : ''}`
      isError(t, reply, 416, 'RANGE_INVALID', what)
      isAt(t, await server.request('GET', location), 204, repository, 10)
    }
  }
  isAt(t, await patch(location, ten, '10-19'), 202, repository, 20)
  const put = await finishUpload(server, location, content.digest, content.bytes.subarray(20))
  isCreated(t, put, repository, content.digest)
  await hasBlob(t, repository, content)
})

t.test('UP-45, T-42, S57: the Content-Type of a chunk does not matter', async (t) => {
  const repository = newRepository('types')
  const types = [
    ...[
      undefined,
      'text/plain',
      'application/json',
      'application/x-www-form-urlencoded',
      'garbage',
      'a/b;;=;',
    ],
    ...[
      'multipart/form-data',
      'multipart/form-data; boundary=x',
      'application/json\ta',
      'text/html;\tx',
      ' ',
      '',
    ],
    ...[
      'application/json; charset=utf-8',
      'application/gzip',
      '*/*',
      '/',
      'application/vnd.oci.image.layer.v1.tar',
    ],
  ]
  for (const type of types) {
    const content = randomBlob(60)
    const headers = type === undefined ? {} : { 'Content-Type': type }
    const opened = await server.request('POST', `/v2/${repository}/blobs/uploads/`, { headers, body: '' })
    t.equal(opened.status, 202, `POST ${type}`)
    const patched = await server.request('PATCH', opened.header('location'), {
      headers,
      body: content.bytes.subarray(0, 30),
    })
    t.equal(patched.status, 202, `PATCH ${type}`)
    const put = withQuery(patched.header('location'), `digest=${content.digest}`)
    const reply = await server.request('PUT', put, { headers, body: content.bytes.subarray(30) })
    t.equal(reply.status, 201, `PUT ${type}`)
    await hasBlob(t, repository, content)
  }
})

t.test('UP-45: a body that is not valid JSON under the type application/json is only bytes', async (t) => {
  const repository = newRepository('types')
  const content = blob('{"broken": [')
  const path = `/v2/${repository}/blobs/uploads/?digest=${content.digest}`
  const headers = { 'Content-Type': 'application/json' }
  isCreated(
    t,
    await server.request('POST', path, { headers, body: content.bytes }),
    repository,
    content.digest,
  )
  await hasBlob(t, repository, content)
})

t.test('UP-46: a PATCH of no bytes leaves the Range as it was', async (t) => {
  const repository = newRepository('zero')
  const location = await openUpload(server, repository)
  isAt(t, await patch(location, Buffer.alloc(0)), 202, repository, 0)
  isAt(t, await patch(location, Buffer.from('abc')), 202, repository, 3)
  isAt(t, await patch(location, Buffer.alloc(0)), 202, repository, 3)
  isAt(t, await server.request('PATCH', location, { chunked: true }), 202, repository, 3)
})

t.test('UP-47, R28: of two PATCHes for one place exactly one is taken, the other gets 416', async (t) => {
  const repository = newRepository('two')
  const content = randomBlob(1_000_000)
  for (let round = 0; round < 5; round++) {
    const location = await openUpload(server, repository)
    const both = await Promise.all(
      [0, 1].map(() =>
        server.request('PATCH', location, {
          headers: { 'Content-Range': '0-999999' },
          body: content.bytes,
          fresh: true,
        }),
      ),
    )
    t.same(both.map((reply) => reply.status).sort(), [202, 416])
    const loser = both.find((reply) => reply.status === 416)
    if (loser) isError(t, loser, 416, 'RANGE_INVALID')
    isAt(t, await server.request('GET', location), 204, repository, content.size)
    isCreated(t, await finishUpload(server, location, content.digest), repository, content.digest)
  }
})

t.test(
  'UP-47: a client that comes back while its dead request still holds the session goes on',
  async (t) => {
    const repository = newRepository('back')
    const content = randomBlob(500_000)
    const location = await openUpload(server, repository)
    const dead = await RawConnection.open(server)
    await dead.request(
      `PATCH ${location}`,
      ['Content-Range: 0-499999', 'Content-Length: 500000'],
      content.bytes.subarray(0, 200_000),
    )
    await eventually('the server has read some', () => uploadFiles().length > 0)
    const retry = server.request('PATCH', location, {
      headers: { 'Content-Range': '0-499999' },
      body: content.bytes,
      fresh: true,
    })
    await dead.abort()
    const reply = await retry
    t.ok([202, 416].includes(reply.status), `${reply.status} ${reply.text}`)
    isCreated(t, await resumeUpload(server, location, content), repository, content.digest)
    await hasBlob(t, repository, content)
  },
)

t.test('UP-48: when the connection breaks in a PATCH, the status tells what was kept', async (t) => {
  const repository = newRepository('broken')
  for (const framing of ['Content-Length: 400000', 'Transfer-Encoding: chunked']) {
    const content = randomBlob(400_000)
    const location = await openUpload(server, repository)
    isAt(t, await patch(location, content.bytes.subarray(0, 1000)), 202, repository, 1000)
    const connection = await RawConnection.open(server)
    const part = content.bytes.subarray(1000, 301_000)
    const size = framing.startsWith('T') ? `${part.length.toString(16)}\r\n` : ''
    const stored = () =>
      filesBelow(join(server.data, 'uploads')).map(
        (file) => statSync(join(server.data, 'uploads', file)).size,
      )
    await connection.request(`PATCH ${location}`, [framing], Buffer.concat([Buffer.from(size), part]))
    // A request that the server comes to after the client went on elsewhere would add its bytes there.
    await eventually('the server is at it', () => stored().some((bytes) => bytes > 1000 && bytes < 400_000))
    await connection.abort()
    isCreated(t, await resumeUpload(server, location, content), repository, content.digest)
    await hasBlob(t, repository, content)
  }
})

t.test('UP-49, UP-73: unknown and strange sessions give 404', async (t) => {
  const repository = newRepository('unknown')
  await openUpload(server, repository)
  const ids = [
    ...[
      '00000000-0000-0000-0000-000000000000',
      '01234567-89ab-4cde-8f01-23456789abcd',
      'not-a-uuid',
      'x',
      '1',
    ],
    ...['__proto__', 'constructor', 'x'.repeat(300), "'%20or%201=1--"],
  ]
  for (const id of ids) {
    const path = `/v2/${repository}/blobs/uploads/${id}`
    for (const method of ['GET', 'HEAD', 'PATCH', 'DELETE'])
      isError(t, await server.request(method, path, { body: '' }), 404, 'BLOB_UPLOAD_UNKNOWN')
    const put = `${path}?digest=${randomDigest()}`
    isError(t, await server.request('PUT', put, { body: 'abc' }), 404, 'BLOB_UPLOAD_UNKNOWN')
  }
})

t.test('UP-50: an old Location still answers, and still refuses a wrong offset', async (t) => {
  const repository = newRepository('stale')
  const content = randomBlob(100)
  const first = await openUpload(server, repository)
  const second = (await patch(first, content.bytes.subarray(0, 50), '0-49')).header('location')
  isAt(t, await server.request('GET', first), 204, repository, 50)
  isOutOfOrder(t, await patch(first, content.bytes.subarray(0, 50), '0-49'), repository, 50)
  const third = (await patch(second, content.bytes.subarray(50), '50-99')).header('location')
  for (const location of [first, second, third])
    isAt(t, await server.request('GET', location), 204, repository, 100)
  isCreated(t, await finishUpload(server, third, content.digest), repository, content.digest)
})

t.test('UP-60, UP-61: the closing PUT may hold the last chunk, with or without its range', async (t) => {
  const repository = newRepository('closing')
  for (const range of ['60-99', 'bytes 60-99/100', undefined]) {
    const content = randomBlob(100)
    const location = await openUpload(server, repository)
    await patch(location, content.bytes.subarray(0, 60))
    const reply = await server.request('PUT', withQuery(location, `digest=${content.digest}`), {
      body: content.bytes.subarray(60),
      headers: range === undefined ? {} : { 'Content-Range': range },
    })
    isCreated(t, reply, repository, content.digest)
    await hasBlob(t, repository, content)
  }
})

t.test('UP-60: a monolithic PUT may say its range as well', async (t) => {
  const repository = newRepository('closing')
  const content = randomBlob(100)
  const location = withQuery(await openUpload(server, repository), `digest=${content.digest}`)
  const headers = { 'Content-Range': '0-99' }
  isCreated(
    t,
    await server.request('PUT', location, { headers, body: content.bytes }),
    repository,
    content.digest,
  )
})

t.test('UP-60, T-41: a closing PUT out of order is refused with 416 and the session goes on', async (t) => {
  const repository = newRepository('closing')
  const content = randomBlob(90)
  const location = await openUpload(server, repository)
  const put = (from: number, to: number) =>
    server.request('PUT', withQuery(location, `digest=${content.digest}`), {
      headers: { 'Content-Range': `${from}-${to}` },
      body: content.bytes.subarray(from, to + 1),
    })
  isOutOfOrder(t, await put(30, 89), repository, 0)
  await patch(location, content.bytes.subarray(0, 60), '0-59')
  isOutOfOrder(t, await put(0, 59), repository, 60)
  isOutOfOrder(t, await put(70, 89), repository, 60)
  isAt(t, await server.request('GET', withQuery(location, 'digest=x')), 204, repository, 60)
  await hasNoBlob(t, repository, content.digest)
  isCreated(t, await put(60, 89), repository, content.digest)
  await hasBlob(t, repository, content)
})

t.test(
  'UP-43, UP-60: a closing PUT whose range and length differ is refused, the session goes on',
  async (t) => {
    const repository = newRepository('closing')
    const content = randomBlob(50)
    const location = withQuery(await openUpload(server, repository), `digest=${content.digest}`)
    for (const range of ['0-48', '0-50', '49-0', 'zero-fortynine']) {
      const reply = await server.request('PUT', location, {
        headers: { 'Content-Range': range },
        body: content.bytes,
      })
      isOutOfOrder(t, reply, repository, 0)
      isAt(t, await server.request('GET', location), 204, repository, 0)
    }
    isCreated(t, await server.request('PUT', location, { body: content.bytes }), repository, content.digest)
  },
)

t.test('UP-62, UP-49: a finished session is gone, but the same PUT again is answered 201', async (t) => {
  const repository = newRepository('finished')
  const content = randomBlob(100)
  const location = await openUpload(server, repository)
  await patch(location, content.bytes)
  isCreated(t, await finishUpload(server, location, content.digest), repository, content.digest)
  isError(t, await server.request('GET', location), 404, 'BLOB_UPLOAD_UNKNOWN')
  isError(t, await patch(location, Buffer.from('x')), 404, 'BLOB_UPLOAD_UNKNOWN')
  isError(t, await server.request('DELETE', location), 404, 'BLOB_UPLOAD_UNKNOWN')
  const again = withQuery(location, `digest=${content.digest}`)
  isCreated(t, await server.request('PUT', again, { body: '' }), repository, content.digest)
  const other = withQuery(location, `digest=${randomDigest()}`)
  isError(t, await server.request('PUT', other, { body: '' }), 404, 'BLOB_UPLOAD_UNKNOWN')
  t.notOk(
    uploadFiles().some((file) => location.includes(file)),
    'no bytes are left',
  )
})

t.test('UP-62: the repeated PUT is answered 201 only where the blob is held', async (t) => {
  const repository = newRepository('finished')
  const other = newRepository('finished')
  const content = randomBlob(100)
  const location = await openUpload(server, repository)
  await finishUpload(server, location, content.digest, content.bytes)
  const elsewhere = location.replace(repository, other)
  const put = withQuery(elsewhere, `digest=${content.digest}`)
  isError(t, await server.request('PUT', put, { body: '' }), 404, 'BLOB_UPLOAD_UNKNOWN')
})

t.test('UP-63, T-40: an empty closing PUT may have a length, none, or an empty chunked body', async (t) => {
  const repository = newRepository('closing')
  for (const framing of [['Content-Length: 0'], [], ['Transfer-Encoding: chunked']]) {
    const content = randomBlob(100)
    const location = await openUpload(server, repository)
    await patch(location, content.bytes)
    const connection = await RawConnection.open(server)
    const end = framing[0]?.startsWith('T') ? '0\r\n\r\n' : ''
    await connection.request(`PUT ${withQuery(location, `digest=${content.digest}`)}`, framing, end)
    const reply = await connection.reply()
    t.equal(reply.status, 201, framing[0] ?? 'no framing')
    t.equal(reply.headers['docker-content-digest'], content.digest)
    await connection.close()
  }
})

t.test('UP-70, UP-71, UP-72: the status of a session', async (t) => {
  const repository = newRepository('status')
  const location = await openUpload(server, repository)
  for (const stored of [0, 1, 2, 700]) {
    const current = Number((await server.request('GET', location)).header('range').slice(2))
    const more = stored - (current === 0 && stored <= 1 ? 0 : current + 1)
    if (more > 0) await patch(location, Buffer.alloc(more))
    for (const path of [location, withQuery(location, `digest=${randomDigest()}`), `${location}?digest=`]) {
      const get = await server.request('GET', path)
      isAt(t, get, 204, repository, stored)
      t.equal(get.body.length, 0)
      const head = await server.request('HEAD', path)
      isAt(t, head, 204, repository, stored)
    }
  }
})

t.test('UP-80, UP-81: a cancelled session is gone with its bytes', async (t) => {
  const repository = newRepository('cancel')
  for (const size of [0, 5000]) {
    const location = await openUpload(server, repository)
    const patched = await patch(location, Buffer.alloc(size))
    const id = patched.header('docker-upload-uuid')
    t.equal((await server.request('DELETE', location)).status, 204)
    for (const method of ['GET', 'DELETE', 'PATCH'])
      isError(t, await server.request(method, location, { body: '' }), 404, 'BLOB_UPLOAD_UNKNOWN')
    await eventually('the bytes are gone', () => !uploadFiles().some((file) => file.includes(id)))
  }
})

t.test('UP-80, UP-47: a session can be cancelled while a PATCH of it is under way', async (t) => {
  const repository = newRepository('cancel')
  const location = await openUpload(server, repository)
  const connection = await RawConnection.open(server)
  await connection.request(`PATCH ${location}`, ['Content-Length: 100000'], Buffer.alloc(50_000))
  const cancelled = server.request('DELETE', location, { fresh: true })
  await connection.abort()
  t.equal((await cancelled).status, 204)
  isError(t, await server.request('GET', location), 404, 'BLOB_UPLOAD_UNKNOWN')
  const id = location.split('/').at(-1)?.split('?')[0] ?? ''
  await eventually('the bytes are gone', () => !uploadFiles().some((file) => file.includes(id)))
})

t.test('UP-90, UP-94, UP-98: a blob of another repository is mounted', async (t) => {
  const from = newRepository('from/deep')
  const content = randomBlob(400)
  await pushBlobs(server, from, content)
  const queries = [
    `mount=${content.digest}&from=${from}`,
    `from=${encodeURIComponent(from)}&mount=${encodeURIComponent(content.digest)}`,
    `mount=${content.digest}&from=${from}&origin=registry.example:5000`,
  ]
  for (const query of queries) {
    const repository = newRepository('to')
    const reply = await server.request('POST', `/v2/${repository}/blobs/uploads/?${query}`)
    isCreated(t, reply, repository, content.digest)
    const head = await server.request('HEAD', `/v2/${repository}/blobs/${content.digest}`)
    t.equal(head.status, 200)
    t.equal(head.header('content-length'), '400')
    await hasBlob(t, repository, content)
  }
})

t.test('UP-90: a sha512 blob is mounted under its digest', async (t) => {
  const from = newRepository('from')
  const repository = newRepository('to')
  const content = randomBlob(100)
  const digest = sha512(content.bytes)
  await finishUpload(server, await openUpload(server, from), digest, content.bytes)
  const path = `/v2/${repository}/blobs/uploads/?mount=${digest}&from=${from}`
  isCreated(t, await server.request('POST', path), repository, digest)
  await hasBlob(t, repository, content, digest)
})

t.test('UP-91, UP-95, T-13: whatever cannot be mounted opens a session instead', async (t) => {
  const from = newRepository('from')
  const held = randomBlob(50)
  await pushBlobs(server, from, held)
  const queries = [
    `mount=${randomDigest()}&from=${from}`,
    `mount=${held.digest}&from=never/pushed`,
    `mount=${held.digest}&from=Bad..Name`,
    `mount=${held.digest}&from=${'x'.repeat(400)}`,
    `mount=${held.digest}&from=..%2F..`,
    `mount=sha256:bad&from=${from}`,
    `mount=md5:abc&from=${from}`,
    `mount=&from=${from}`,
    'mount=x',
  ]
  for (const query of queries) {
    const repository = newRepository('to')
    const reply = await server.request('POST', `/v2/${repository}/blobs/uploads/?${query}`)
    isAt(t, reply, 202, repository, 0)
    await hasNoBlob(t, repository, held.digest)
    const put = await finishUpload(server, reply.header('location'), held.digest, held.bytes)
    isCreated(t, put, repository, held.digest)
  }
})

t.test('UP-93: a mount without "from" finds the blob wherever it is', async (t) => {
  const content = randomBlob(50)
  await pushBlobs(server, newRepository('somewhere'), content)
  const repository = newRepository('to')
  const path = `/v2/${repository}/blobs/uploads/?mount=`
  isCreated(t, await server.request('POST', path + content.digest), repository, content.digest)
  await hasBlob(t, repository, content)
  isAt(t, await server.request('POST', path + randomDigest()), 202, repository, 0)
})

t.test('UP-96: a blob that the repository has already is mounted from anywhere', async (t) => {
  const repository = newRepository('to')
  const content = randomBlob(50)
  await pushBlobs(server, repository, content)
  for (const from of ['never/pushed', repository, 'Bad']) {
    const path = `/v2/${repository}/blobs/uploads/?mount=${content.digest}&from=${from}`
    isCreated(t, await server.request('POST', path), repository, content.digest)
  }
})

t.test('UP-97: sessions that never get a byte leave no file', async (t) => {
  const repository = newRepository('cheap')
  const before = uploadFiles()
  const opened = await Promise.all(
    Array.from({ length: 40 }, () =>
      server.request('POST', `/v2/${repository}/blobs/uploads/?mount=${randomDigest()}&from=x`),
    ),
  )
  t.same(uploadFiles(), before)
  const cancelled = await Promise.all(
    opened.map((reply) => server.request('DELETE', reply.header('location'))),
  )
  t.ok(cancelled.every((reply) => reply.status === 204))
})

t.test('S62: a Content-Encoding on an upload is not undone: the bytes are stored as they come', async (t) => {
  const repository = newRepository('encoded')
  const { gzipSync } = await import('node:zlib')
  const content = blob(gzipSync('x'.repeat(1000)))
  const path = `/v2/${repository}/blobs/uploads/?digest=${content.digest}`
  const headers = { 'Content-Encoding': 'gzip' }
  isCreated(
    t,
    await server.request('POST', path, { headers, body: content.bytes }),
    repository,
    content.digest,
  )
  await hasBlob(t, repository, content)
})

t.test('UP-24, UP-80, UP-62: after all this the uploads folder holds only what sessions hold', async (t) => {
  const { readdirSync } = await import('node:fs')
  for (const name of readdirSync(join(server.data, 'uploads'))) t.match(name, UUID)
})

everyReplyKeptTheRules(t)
