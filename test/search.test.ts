import t from 'tap'
import { everyReplyKeptTheRules, image, push, startServer } from './harness.js'

interface Results {
  query: string
  num_results: number
  results: { name: string; description: string; star_count: number; is_official: boolean }[]
}

const server = await startServer(t)
const names = ['app', 'team/app', 'team/app-tools', 'team/other', 'x/my.app', 'library/nginx', 'web']
for (const name of names) await push(server, name, 'latest', image({ layers: [] }))

const docker = { 'X-Docker-Token': 'true' }
const search = (query: string, headers: Record<string, string> = docker) =>
  server.request('GET', `/v1/search?${query}`, { headers })

t.test('V1-01: the ping of docker search is answered', async (t) => {
  const reply = await server.request('GET', '/v1/_ping')
  t.equal(reply.status, 200)
  t.match(reply.header('content-type'), /^application\/json/)
  t.equal(reply.json<{ standalone: boolean }>().standalone, true)
  t.equal(reply.header('x-docker-registry-standalone').toLowerCase(), 'true')
})

t.test('V1-02, V1-03: docker search gets names without the host, in the form it reads', async (t) => {
  const reply = await search('q=team&n=25')
  t.equal(reply.status, 200)
  t.match(reply.header('content-type'), /^application\/json/)
  const found = reply.json<Results>()
  t.equal(found.query, 'team')
  t.equal(found.num_results, 3)
  t.same(found.results.map((result) => result.name).sort(), ['team/app', 'team/app-tools', 'team/other'])
  for (const result of found.results) {
    t.type(result.description, 'string')
    t.equal(result.star_count, 0)
    t.equal(result.is_official, false)
  }
})

t.test('V1-02: nothing found is an empty array', async (t) => {
  for (const query of [
    'q=nothing-like-it',
    'q=%25',
    'q=_',
    'q=a*',
    'q=%27%20or%201=1--',
    'q=[a-z]',
    'q=%00',
  ]) {
    const reply = await search(query)
    t.equal(reply.status, 200, query)
    t.same(reply.json<Results>().results, [], query)
    t.equal(reply.json<Results>().num_results, 0)
  }
})

t.test('V1-04: an empty or any other login does not stand in the way', async (t) => {
  for (const Authorization of ['Basic Og==', 'Basic dXNlcjpwYXNz', 'Bearer x', 'garbage']) {
    t.equal((await search('q=app', { ...docker, Authorization })).status, 200, Authorization)
    t.equal((await search('q=app', { Authorization })).status, 200, `${Authorization} alone`)
  }
})

t.test('V1-05: podman, without login and docker header, is sent to the catalog by 404', async (t) => {
  const reply = await search('q=app&n=25', {})
  t.equal(reply.status, 404)
  t.ok(reply.errors.length > 0)
})

t.test(
  'V1-07: the term is found in any case; exact, then beginning, then the others; n is kept',
  async (t) => {
    const found = async (query: string) =>
      (await search(query)).json<Results>().results.map((result) => result.name)
    const all = await found('q=app')
    t.equal(all[0], 'app', 'the exact name first')
    t.same([...all].sort(), ['app', 'team/app', 'team/app-tools', 'x/my.app'])
    t.same((await found('q=TEAM/APP'))[0], 'team/app')
    t.same((await found('q=APP')).sort(), [...all].sort())
    t.equal((await found('q=app&n=2')).length, 2)
    t.equal((await found('q=app&n=1')).length, 1)
    t.equal((await found('q=app&n=100')).length, 4)
  },
)

t.test('V1-02: odd limits and terms are no errors', async (t) => {
  for (const query of [
    '',
    'q=',
    'n=5',
    'q=app&n=0',
    'q=app&n=-1',
    'q=app&n=x',
    'q=app&n=1000000',
    'q=a&q=b',
  ]) {
    const reply = await search(query)
    t.equal(reply.status, 200, query)
    t.ok(Array.isArray(reply.json<Results>().results), query)
  }
  t.equal((await search(`q=${'x'.repeat(10_000)}`)).status, 200)
})

t.test('V1-08: nothing else is served below /v1/', async (t) => {
  for (const path of [
    '/v1/',
    '/v1/users/',
    '/v1/repositories/app/images',
    '/v1/images/x/ancestry',
    '/v1/_ping/x',
  ])
    t.equal((await server.request('GET', path)).status, 404, path)
  for (const method of ['POST', 'PUT', 'DELETE'])
    t.equal((await server.request(method, '/v1/search?q=a')).status, 405, method)
})

everyReplyKeptTheRules(t)
