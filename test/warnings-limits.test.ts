import { join } from 'node:path'
import t from 'tap'
import {
  eventually,
  everyReplyKeptTheRules,
  filesBelow,
  finishUpload,
  image,
  isError,
  newRepository,
  openUpload,
  push,
  randomBlob,
  startServer,
  withQuery,
} from './harness.js'

const server = await startServer(t, { config: { uploads: { maxPerRepository: 3, maxBlobSize: '1MiB' } } })
const open = (repository: string, query = '') =>
  server.request('POST', `/v2/${repository}/blobs/uploads/${query}`)
const files = () => filesBelow(join(server.data, 'uploads'))

t.test(
  'UP-07, RL-02, RL-04: too many open uploads give 429 with Retry-After, the open ones go on',
  async (t) => {
    const repository = newRepository('limits')
    const content = randomBlob(100)
    const locations = [await openUpload(server, repository), await openUpload(server, repository)]
    locations.push(await openUpload(server, repository))
    for (const query of ['', `?digest-algorithm=sha512`, `?mount=${content.digest}&from=no/where`]) {
      const refused = await open(repository, query)
      isError(t, refused, 429, 'TOOMANYREQUESTS')
      t.match(refused.header('retry-after'), /^[1-9]\d*$/, 'seconds, as a whole number')
    }
    t.equal((await open(newRepository('limits'))).status, 202, 'another repository is not touched')
    const [first = '', second = '', third = ''] = locations
    t.equal((await server.request('PATCH', first, { body: content.bytes })).status, 202, 'RL-04')
    await finishUpload(server, first, content.digest)
    t.equal((await open(repository)).status, 202, 'one finished, one more may open')
    isError(t, await open(repository), 429, 'TOOMANYREQUESTS')
    await server.request('DELETE', second)
    await server.request('PUT', withQuery(third, `digest=sha256:${'0'.repeat(64)}`), { body: 'x' })
    t.equal((await open(repository)).status, 202, 'after a cancel')
    t.equal((await open(repository)).status, 202, 'after a mismatch')
  },
)

t.test('RL-06, UP-07: reading goes on beside the limit', async (t) => {
  const repository = newRepository('limits')
  await push(server, repository, 'x', image({ layers: [randomBlob(10)] }))
  for (let n = 0; n < 4; n++) await open(repository)
  isError(t, await open(repository), 429, 'TOOMANYREQUESTS')
  for (let n = 0; n < 50; n++) {
    t.equal((await server.request('GET', '/v2/')).status, 200)
    t.equal((await server.request('HEAD', `/v2/${repository}/manifests/x`)).status, 200)
  }
})

t.test('UP-10, S51: a blob over the limit is refused with 413, its bytes do not stay', async (t) => {
  const limit = 1024 * 1024
  const fits = randomBlob(limit)
  const over = randomBlob(limit + 1)
  for (const chunked of [false, true]) {
    const repository = newRepository('limits')
    const post = await server.request('POST', `/v2/${repository}/blobs/uploads/?digest=${over.digest}`, {
      body: over.bytes,
      chunked,
      fresh: true,
    })
    isError(t, post, 413, 'SIZE_INVALID')
    const location = await openUpload(server, repository)
    const patched = await server.request('PATCH', location, { body: over.bytes, chunked, fresh: true })
    isError(t, patched, 413, 'SIZE_INVALID')
    const halves = await openUpload(server, repository)
    await server.request('PATCH', halves, { body: over.bytes.subarray(0, 700_000) })
    const second = await server.request('PATCH', halves, {
      body: over.bytes.subarray(700_000),
      chunked,
      fresh: true,
    })
    isError(t, second, 413, 'SIZE_INVALID')
    await server.request('DELETE', location)
    await server.request('DELETE', halves)
    await eventually('no bytes stay', () => files().length === 0)
    t.equal((await server.request('HEAD', `/v2/${repository}/blobs/${over.digest}`)).status, 404)
    const good = await server.request('POST', `/v2/${repository}/blobs/uploads/?digest=${fits.digest}`, {
      body: fits.bytes,
      chunked,
    })
    t.equal(good.status, 201, 'just the limit is taken')
  }
})

t.test('RL-01: no Warning where there is nothing to warn of', async (t) => {
  const repository = newRepository('limits')
  const reply = await push(server, repository, 'x', image({ layers: [] }))
  t.notOk(reply.headers.warning)
})

everyReplyKeptTheRules(t)
