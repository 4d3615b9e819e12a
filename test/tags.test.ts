import t from 'tap'
import {
  everyReplyKeptTheRules,
  image,
  isError,
  newRepository,
  nextLink,
  push,
  putManifest,
  type Reply,
  randomDigest,
  type Server,
  startServer,
} from './harness.js'

const server = await startServer(t)

const list = (repository: string, query = '') => server.request('GET', `/v2/${repository}/tags/list${query}`)
const tagsIn = (reply: Reply) => reply.json<{ name: string; tags: string[] }>().tags

/** A repository with these tags, all on one image. */
async function tagged(at: Server, tags: string[]): Promise<string> {
  const repository = newRepository('tags')
  const manifest = image({ layers: [] })
  await push(at, repository, manifest.digest, manifest)
  for (let from = 0; from < tags.length; from += 100) {
    const query = tags
      .slice(from, from + 100)
      .map((tag) => `tag=${tag}`)
      .join('&')
    const reply = await putManifest(at, repository, `${manifest.digest}?${query}`, manifest)
    if (reply.status !== 201) throw new Error(reply.text)
  }
  return repository
}

const numbered = (count: number) => Array.from({ length: count }, (_, n) => `v${String(n).padStart(6, '0')}`)

t.test('TG-01, TG-08, TG-10: the list is the name and an array of tags', async (t) => {
  const repository = await tagged(server, ['b', 'a'])
  const reply = await list(repository)
  t.equal(reply.status, 200)
  t.match(reply.header('content-type'), /^application\/json\b/)
  t.same(reply.json(), { name: repository, tags: ['a', 'b'] })
  t.notOk(reply.headers.link)
})

t.test('TG-01, TG-03: a repository without tags gives an empty array, never null', async (t) => {
  const repository = await tagged(server, ['only'])
  t.equal((await server.request('DELETE', `/v2/${repository}/manifests/only`)).status, 202)
  const reply = await list(repository)
  t.equal(reply.status, 200)
  t.same(reply.json(), { name: repository, tags: [] })
  const untagged = newRepository('tags')
  const manifest = image()
  await push(server, untagged, manifest.digest, manifest)
  t.same((await list(untagged)).json(), { name: untagged, tags: [] })
})

t.test('TG-02: tags are sorted by their bytes', async (t) => {
  const tags = ['b', 'a', 'B', 'A', '10', '9', '1', '_', 'a.b', 'a-b', 'a_b', 'ab', 'Z', 'z', '0', 'aB', 'a1']
  const repository = await tagged(server, tags)
  t.same(tagsIn(await list(repository)), [...tags].sort())
})

t.test('TG-03: an unknown repository gives 404 NAME_UNKNOWN', async (t) => {
  isError(t, await list('never/pushed'), 404, 'NAME_UNKNOWN')
  isError(t, await list('never/pushed', '?n=0'), 404, 'NAME_UNKNOWN')
  isError(t, await list('never/pushed', '?n=5&last=a'), 404, 'NAME_UNKNOWN')
})

t.test('TG-04: n=0 gives an empty list without a Link', async (t) => {
  const repository = await tagged(server, ['a', 'b'])
  for (const query of ['?n=0', '?n=0&last=a', '?n=00']) {
    const reply = await list(repository, query)
    t.equal(reply.status, 200)
    t.same(reply.json(), { name: repository, tags: [] })
    t.notOk(reply.headers.link)
  }
})

t.test('TG-04, S50: an n that is no whole number gives 400', async (t) => {
  const repository = await tagged(server, ['a', 'b'])
  for (const n of [
    '-1',
    'a',
    '',
    '1.5',
    '1e3',
    '0x10',
    '%201',
    '+1',
    'NaN',
    'Infinity',
    '-0',
    '1,2',
    'null',
    '٣',
  ])
    isError(t, await list(repository, `?n=${encodeURI(n)}`), 400, 'PAGINATION_NUMBER_INVALID', `n=${n}`)
})

t.test('TG-04, S50: a very large n is clamped, never refused', async (t) => {
  const repository = await tagged(server, ['a', 'b'])
  for (const n of ['1000', '1000000000', '2147483648', '9223372036854775808', `1${'0'.repeat(400)}`]) {
    const reply = await list(repository, `?n=${n}`)
    t.equal(reply.status, 200, n.slice(0, 30))
    t.same(tagsIn(reply), ['a', 'b'])
    t.notOk(reply.headers.link)
  }
})

t.test('TG-04, TG-06, S50: ten thousand tags a page at most, by default too', async (t) => {
  const tags = numbered(10_001)
  const repository = await tagged(server, tags)
  for (const query of ['', '?n=10001', '?n=4294967296']) {
    const first = await list(repository, query)
    t.equal(tagsIn(first).length, 10_000, `"${query}"`)
    const next = nextLink(first)
    t.ok(next)
    const second = await server.request('GET', next ?? '')
    t.same(tagsIn(second), ['v010000'])
    t.notOk(second.headers.link)
  }
  t.equal(tagsIn(await list(repository, '?n=9999')).length, 9999)
})

t.test('TG-05: last is where the list goes on, whether that tag exists or not', async (t) => {
  const repository = await tagged(server, ['a', 'c', 'e', 'g'])
  const cases: [string, string[]][] = [
    ['?last=a', ['c', 'e', 'g']],
    ['?last=b', ['c', 'e', 'g']],
    ['?last=g', []],
    ['?last=zzz', []],
    ['?last=', ['a', 'c', 'e', 'g']],
    ['?last=0', ['a', 'c', 'e', 'g']],
    ['?n=1&last=c', ['e']],
    ['?last=c&n=5', ['e', 'g']],
    ['?last=not%20a%20tag!', []],
    ['?last=!', ['a', 'c', 'e', 'g']],
    ['?last=%C3%A4', []],
    ["?last='%20or%201=1--", ['a', 'c', 'e', 'g']],
  ]
  for (const [query, expected] of cases) {
    const reply = await list(repository, query)
    t.equal(reply.status, 200, query)
    t.same(tagsIn(reply), expected, query)
  }
})

t.test('TG-07, TG-09, T-56: following the links gives every tag once and ends without a Link', async (t) => {
  for (const [count, size] of [
    [10, 3],
    [9, 3],
    [3, 3],
    [2, 3],
    [7, 1],
    [1, 1],
  ] as const) {
    const tags = numbered(count)
    const repository = await tagged(server, tags)
    const seen: string[] = []
    let path: string | undefined = `/v2/${repository}/tags/list?n=${size}`
    let pages = 0
    while (path !== undefined && pages < 20) {
      const reply: Reply = await server.request('GET', path)
      t.ok(tagsIn(reply).length <= size)
      seen.push(...tagsIn(reply))
      path = nextLink(reply)
      if (path !== undefined) {
        t.match(path, new RegExp(`^/v2/${repository}/tags/list\\?`), 'a path, with the same repository')
        const query = new URLSearchParams(path.split('?')[1])
        t.equal(query.get('n'), String(size))
        t.equal(query.get('last'), seen.at(-1))
      }
      pages++
    }
    t.same(seen, tags)
    t.equal(pages, Math.ceil(count / size), `${count} by ${size}`)
  }
})

t.test('TG-07: the link has the form of RFC 8288', async (t) => {
  const repository = await tagged(server, ['a', 'b'])
  t.match((await list(repository, '?n=1')).header('link'), /^<\/v2\/[^>]+>; rel="next"$/)
})

t.test('TG-07, G-06: the link of a percent-encoded request is one that works', async (t) => {
  const repository = await tagged(server, ['a', 'b', 'c'])
  const reply = await server.request('GET', `/v2/${repository.replace('t', '%74')}/tags/list?n=2&last=`)
  const next = nextLink(reply)
  t.same(tagsIn(await server.request('GET', next ?? '')), ['c'])
})

t.test('TG-04: parameters given twice, and others, do not hurt', async (t) => {
  const repository = await tagged(server, ['a', 'b', 'c'])
  const twice = await list(repository, '?n=1&n=2')
  t.same(tagsIn(twice), ['a'], 'the first counts')
  t.equal((await list(repository, '?n=2&ns=docker.io&x=%00&%zz')).status, 200)
})

t.test('TG-08, DL-01, DL-02: the list follows pushes and deletes at once', async (t) => {
  const repository = newRepository('tags')
  const [first, second] = [image(), image()]
  await push(server, repository, 'one', first)
  await push(server, repository, 'two', second)
  await putManifest(server, repository, 'three', first)
  t.same(tagsIn(await list(repository)), ['one', 'three', 'two'])
  await server.request('DELETE', `/v2/${repository}/manifests/two`)
  t.same(tagsIn(await list(repository)), ['one', 'three'])
  await server.request('DELETE', `/v2/${repository}/manifests/${first.digest}`)
  t.same(tagsIn(await list(repository)), [])
  isError(t, await list(`${repository}/x`), 404, 'NAME_UNKNOWN')
  t.equal((await server.request('HEAD', `/v2/${repository}/manifests/${randomDigest()}`)).status, 404)
})

t.test('S74, TG-01: repositories whose names begin alike do not see the tags of each other', async (t) => {
  for (const name of ['alike', 'alike/x', 'alike-x', 'alikex', 'alike/x/y'])
    await push(server, name, `tag-of-${name.replaceAll('/', '.')}`, image({ layers: [] }))
  t.same(tagsIn(await list('alike')), ['tag-of-alike'])
  t.same(tagsIn(await list('alike/x')), ['tag-of-alike.x'])
  t.same(tagsIn(await list('alike-x')), ['tag-of-alike-x'])
})

everyReplyKeptTheRules(t)
