import t, { type Test } from 'tap'
import {
  descriptor,
  eventually,
  everyReplyKeptTheRules,
  image,
  index,
  isError,
  newRepository,
  push,
  pushBlobs,
  putManifest,
  RawConnection,
  type Reply,
  randomBlob,
  randomDigest,
  startServer,
  tagsOf,
} from './harness.js'

const server = await startServer(t)

const del = (repository: string, rest: string) => server.request('DELETE', `/v2/${repository}/${rest}`)
const statusOf = async (repository: string, rest: string, method = 'HEAD') =>
  (await server.request(method, `/v2/${repository}/${rest}`)).status

function isAccepted(t: Test, reply: Reply) {
  t.equal(reply.status, 202, reply.text)
  t.equal(reply.header('content-length'), '0')
  t.equal(reply.body.length, 0)
}

t.test('DL-01, DL-05, R13: deleting a tag removes that tag alone', async (t) => {
  const repository = newRepository('deletes')
  const manifest = image()
  await push(server, repository, 'a', manifest)
  await putManifest(server, repository, 'b', manifest)
  isAccepted(t, await del(repository, 'manifests/a'))
  t.equal(await statusOf(repository, 'manifests/a'), 404)
  t.equal(await statusOf(repository, 'manifests/a', 'GET'), 404)
  t.equal(await statusOf(repository, 'manifests/b'), 200)
  t.equal(await statusOf(repository, `manifests/${manifest.digest}`), 200)
  t.same(await tagsOf(server, repository), ['b'])
  isAccepted(t, await del(repository, 'manifests/b'))
  t.equal(await statusOf(repository, `manifests/${manifest.digest}`), 200, 'the manifest stays, untagged')
})

t.test('DL-02, DL-09: deleting a digest removes the manifest and all its tags', async (t) => {
  const repository = newRepository('deletes')
  const manifest = image()
  const other = image()
  await push(server, repository, 'a', manifest)
  await putManifest(server, repository, 'b', manifest)
  await push(server, repository, 'c', other)
  isAccepted(t, await del(repository, `manifests/${manifest.digest}`))
  for (const reference of ['a', 'b', manifest.digest])
    for (const method of ['GET', 'HEAD'])
      t.equal(await statusOf(repository, `manifests/${reference}`, method), 404, `${method} ${reference}`)
  t.same(await tagsOf(server, repository), ['c'])
})

t.test('DL-02: deleting one algorithm of a manifest leaves the other', async (t) => {
  const repository = newRepository('deletes')
  const manifest = image()
  await push(server, repository, 'short', manifest)
  await putManifest(server, repository, `${manifest.digest512}?tag=long`, manifest)
  isAccepted(t, await del(repository, `manifests/${manifest.digest}`))
  t.equal(await statusOf(repository, 'manifests/short'), 404)
  t.equal(await statusOf(repository, 'manifests/long'), 200)
  t.equal(await statusOf(repository, `manifests/${manifest.digest512}`), 200)
  isAccepted(t, await del(repository, `manifests/${manifest.digest512}`))
  t.equal(await statusOf(repository, 'manifests/long'), 404)
})

t.test('DL-03, DL-05: a deleted blob is gone from its repository at once', async (t) => {
  const repository = newRepository('deletes')
  const content = randomBlob()
  await pushBlobs(server, repository, content)
  isAccepted(t, await del(repository, `blobs/${content.digest}`))
  for (const method of ['GET', 'HEAD'])
    t.equal(await statusOf(repository, `blobs/${content.digest}`, method), 404)
  const range = await server.request('GET', `/v2/${repository}/blobs/${content.digest}`, {
    headers: { Range: 'bytes=0-1', 'If-None-Match': `"${content.digest}"` },
  })
  t.equal(range.status, 404)
})

t.test('DL-03, S25: other repositories keep a blob that one has deleted', async (t) => {
  const [first, second] = [newRepository('deletes'), newRepository('deletes')]
  const content = randomBlob()
  await pushBlobs(server, first, content)
  await server.request('POST', `/v2/${second}/blobs/uploads/?mount=${content.digest}&from=${first}`)
  t.equal(await statusOf(second, `blobs/${content.digest}`), 200)
  isAccepted(t, await del(first, `blobs/${content.digest}`))
  t.equal(await statusOf(first, `blobs/${content.digest}`), 404)
  const kept = await server.request('GET', `/v2/${second}/blobs/${content.digest}`)
  t.ok(kept.body.equals(content.bytes))
})

t.test('DL-03: a blob that a manifest of the repository uses is kept: 405', async (t) => {
  const repository = newRepository('deletes')
  const manifest = image()
  await push(server, repository, 'x', manifest)
  for (const part of manifest.parts) {
    const reply = await del(repository, `blobs/${part.digest}`)
    isError(t, reply, 405, 'UNSUPPORTED')
    t.ok((reply.errors[0]?.message.length ?? 0) > 20, `it says why: ${reply.errors[0]?.message}`)
    t.equal(await statusOf(repository, `blobs/${part.digest}`), 200)
  }
  await del(repository, 'manifests/x')
  isError(t, await del(repository, `blobs/${manifest.parts[0]?.digest}`), 405, 'UNSUPPORTED', 'untagged too')
  isAccepted(t, await del(repository, `manifests/${manifest.digest}`))
  for (const part of manifest.parts) isAccepted(t, await del(repository, `blobs/${part.digest}`))
})

t.test('DL-03, BL-17: the manifest of another repository does not keep a blob here', async (t) => {
  const [first, second] = [newRepository('deletes'), newRepository('deletes')]
  const manifest = image()
  await push(server, first, 'x', manifest)
  await pushBlobs(server, second, ...manifest.parts)
  for (const part of manifest.parts) isAccepted(t, await del(second, `blobs/${part.digest}`))
  const layer = await server.request('GET', `/v2/${first}/blobs/${manifest.parts[1]?.digest}`)
  t.equal(layer.status, 200)
})

t.test('DL-04, DL-01: what is not there cannot be deleted: 404', async (t) => {
  const repository = newRepository('deletes')
  const manifest = image()
  const content = randomBlob()
  await push(server, repository, 'x', manifest)
  await pushBlobs(server, repository, content)
  isError(t, await del(repository, 'manifests/unknown'), 404, 'MANIFEST_UNKNOWN')
  isError(t, await del(repository, `manifests/${randomDigest()}`), 404, 'MANIFEST_UNKNOWN')
  isError(t, await del(repository, `blobs/${randomDigest()}`), 404, 'BLOB_UNKNOWN')
  isError(t, await del('never/pushed', 'manifests/x'), 404, 'NAME_UNKNOWN')
  isError(t, await del('never/pushed', `blobs/${content.digest}`), 404, 'BLOB_UNKNOWN')
  isError(t, await del(repository, 'manifests/sha256:bad'), 400, 'DIGEST_INVALID')
  isError(t, await del(repository, 'blobs/latest'), 400, 'DIGEST_INVALID')
  isAccepted(t, await del(repository, `blobs/${content.digest}`))
  isError(t, await del(repository, `blobs/${content.digest}`), 404, 'BLOB_UNKNOWN')
  isAccepted(t, await del(repository, 'manifests/x'))
  isError(t, await del(repository, 'manifests/x'), 404, 'MANIFEST_UNKNOWN')
  isAccepted(t, await del(repository, `manifests/${manifest.digest}`))
  const again = await del(repository, `manifests/${manifest.digest}`)
  t.equal(again.status, 404)
})

t.test('S25: what one repository deletes stays in the other, and the other way round', async (t) => {
  const [first, second] = [newRepository('deletes'), newRepository('deletes')]
  const manifest = image()
  for (const repository of [first, second]) await push(server, repository, 'x', manifest)
  isAccepted(t, await del(first, `manifests/${manifest.digest}`))
  t.equal(await statusOf(second, 'manifests/x'), 200)
  t.equal(await statusOf(first, 'manifests/x'), 404)
})

t.test('DL-06: a child that an index lists can be deleted', async (t) => {
  const repository = newRepository('deletes')
  const child = image()
  await push(server, repository, child.digest, child)
  await putManifest(server, repository, 'index', index([child]))
  isAccepted(t, await del(repository, `manifests/${child.digest}`))
  t.equal(await statusOf(repository, 'manifests/index', 'GET'), 200)
})

t.test('DL-07: deleting an index leaves its children', async (t) => {
  const repository = newRepository('deletes')
  const children = [image(), image()]
  for (const child of children) await push(server, repository, child.digest, child)
  const list = index(children)
  await putManifest(server, repository, 'index', list)
  isAccepted(t, await del(repository, `manifests/${list.digest}`))
  for (const child of children) t.equal(await statusOf(repository, `manifests/${child.digest}`), 200)
})

t.test('DL-10: a pull that is under way is not broken by a delete', async (t) => {
  const repository = newRepository('deletes')
  const content = randomBlob(12_000_000)
  await pushBlobs(server, repository, content)
  const connection = await RawConnection.open(server)
  await connection.request(`GET /v2/${repository}/blobs/${content.digest}`, ['Connection: close'])
  await eventually('the first bytes', () => connection.text.length > 0)
  connection.socket.pause()
  isAccepted(t, await del(repository, `blobs/${content.digest}`))
  connection.socket.resume()
  await connection.closed
  t.ok(Buffer.from(connection.replies()[0]?.body ?? '', 'latin1').equals(content.bytes))
})

t.test('R08, R31: what was deleted can be pushed again and is whole', async (t) => {
  const repository = newRepository('deletes')
  const manifest = image()
  for (let round = 0; round < 10; round++) {
    await push(server, repository, 'x', manifest)
    const layer = manifest.parts[1]
    const read = await server.request('GET', `/v2/${repository}/blobs/${layer?.digest}`)
    t.ok(layer && read.body.equals(layer.bytes), `round ${round}`)
    isAccepted(t, await del(repository, `manifests/${manifest.digest}`))
    for (const part of manifest.parts) isAccepted(t, await del(repository, `blobs/${part.digest}`))
  }
})

t.test(
  'DL-10, R08: a delete and a push of one blob at the same time leave it there or not, never half',
  async (t) => {
    const repository = newRepository('deletes')
    const content = randomBlob(50_000)
    await pushBlobs(server, repository, content)
    for (let round = 0; round < 15; round++) {
      const post = `/v2/${repository}/blobs/uploads/?digest=${content.digest}`
      const [removed, pushed] = await Promise.all([
        del(repository, `blobs/${content.digest}`),
        server.request('POST', post, { body: content.bytes, fresh: true }),
      ])
      t.ok([202, 404].includes(removed.status), `delete ${removed.status}`)
      t.equal(pushed.status, 201, 'push')
      const read = await server.request('GET', `/v2/${repository}/blobs/${content.digest}`)
      if (read.status === 200) t.ok(read.body.equals(content.bytes), 'whole')
      else isError(t, read, 404, 'BLOB_UNKNOWN')
    }
  },
)

t.test('DL-02, MF-33: a deleted manifest frees what it used, and its referrer entry', async (t) => {
  const repository = newRepository('deletes')
  const subject = image()
  await push(server, repository, 'subject', subject)
  const shared = image({ layers: subject.parts.slice(1), extra: { subject: descriptor(subject) } })
  await push(server, repository, 'shared', shared)
  isAccepted(t, await del(repository, `manifests/${subject.digest}`))
  isError(t, await del(repository, `blobs/${subject.parts[1]?.digest}`), 405, 'UNSUPPORTED', 'still used')
  isAccepted(t, await del(repository, `manifests/${shared.digest}`))
  isAccepted(t, await del(repository, `blobs/${subject.parts[1]?.digest}`))
})

everyReplyKeptTheRules(t)
