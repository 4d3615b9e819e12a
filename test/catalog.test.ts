import t from 'tap'
import {
  everyReplyKeptTheRules,
  image,
  isError,
  nextLink,
  openUpload,
  push,
  pushBlobs,
  type Reply,
  randomBlob,
  startServer,
} from './harness.js'

const server = await startServer(t)
const catalog = (query = '') => server.request('GET', `/v2/_catalog${query}`)
const namesIn = (reply: Reply) => reply.json<{ repositories: string[] }>().repositories

t.test('CT-03: the catalog of an empty registry is an empty array', async (t) => {
  const reply = await catalog()
  t.equal(reply.status, 200)
  t.match(reply.header('content-type'), /^application\/json\b/)
  t.same(reply.json(), { repositories: [] })
  t.notOk(reply.headers.link)
  t.same((await catalog('?n=5')).json(), { repositories: [] })
})

t.test('CT-04, UP-06: repositories that have only sessions are not listed', async (t) => {
  await openUpload(server, 'only/sessions')
  const location = await openUpload(server, 'only/bytes')
  await server.request('PATCH', location, { body: 'abc' })
  t.same(namesIn(await catalog()), [])
  const tags = await server.request('GET', '/v2/only/sessions/tags/list')
  isError(t, tags, 404, 'NAME_UNKNOWN')
})

const names = ['a', 'a-b', 'a/b', 'a/b/c', 'a.b', 'ab', 'b', 'b/0', 'b/1', 'library/nginx', 'zz', '0']

t.test('CT-01: repositories are listed once each, sorted by their bytes', async (t) => {
  for (const name of names.toReversed()) {
    await push(server, name, 'latest', image({ layers: [] }))
    await push(server, name, 'other', image({ layers: [] }))
  }
  const reply = await catalog()
  t.same(namesIn(reply), [...names].sort())
  t.notOk(reply.headers.link)
})

t.test('CT-01: n and last page through it, and the last page has no Link', async (t) => {
  for (const size of [1, 4, 5, 6, 11, 12, 13]) {
    const seen: string[] = []
    let path: string | undefined = `/v2/_catalog?n=${size}`
    let pages = 0
    while (path !== undefined && pages < 20) {
      const reply: Reply = await server.request('GET', path)
      t.ok(namesIn(reply).length <= size)
      seen.push(...namesIn(reply))
      path = nextLink(reply)
      if (path !== undefined) t.match(path, /^\/v2\/_catalog\?/)
      pages++
    }
    t.same(seen, [...names].sort(), `by ${size}`)
    t.equal(pages, Math.ceil(names.length / size))
  }
})

t.test('CT-01: last is exclusive and need not exist', async (t) => {
  const sorted = [...names].sort()
  t.same(namesIn(await catalog('?last=b')), ['b/0', 'b/1', 'library/nginx', 'zz'])
  t.same(namesIn(await catalog('?last=b%2F0&n=1')), ['b/1'])
  t.same(namesIn(await catalog('?last=c')), ['library/nginx', 'zz'])
  t.same(namesIn(await catalog('?last=zzz')), [])
  t.same(namesIn(await catalog('?last=')), sorted)
})

t.test('CT-01, S50: n=0 is empty without a Link, a bad n is refused, a large one clamped', async (t) => {
  const none = await catalog('?n=0')
  t.same(none.json(), { repositories: [] })
  t.notOk(none.headers.link)
  for (const n of ['-1', 'x', '', '1.5', '1e400'])
    isError(t, await catalog(`?n=${n}`), 400, 'PAGINATION_NUMBER_INVALID', `n=${n}`)
  for (const n of ['1000', '1000000000', '9223372036854775808'])
    t.equal(namesIn(await catalog(`?n=${n}`)).length, names.length, n)
})

t.test('CT-04, DL-02: a repository without manifests and tags is no longer listed', async (t) => {
  const manifest = image()
  await push(server, 'short/lived', 'x', manifest)
  t.ok(namesIn(await catalog()).includes('short/lived'))
  await server.request('DELETE', `/v2/short/lived/manifests/${manifest.digest}`)
  t.notOk(namesIn(await catalog()).includes('short/lived'))
})

t.test('CT-04: blobs alone do not make a repository that is listed', async (t) => {
  await pushBlobs(server, 'only/blobs', randomBlob())
  t.notOk(namesIn(await catalog()).includes('only/blobs'))
})

t.test('EXT-02, G-18: the catalog is not a repository', async (t) => {
  for (const path of ['/v2/_catalog/tags/list', '/v2/_catalog/manifests/latest', '/v2/a/_catalog/tags/list'])
    isError(t, await server.request('GET', path), 400, 'NAME_INVALID', path)
  t.equal((await server.request('GET', '/v2/a/_catalog')).status, 404)
})

everyReplyKeptTheRules(t)
