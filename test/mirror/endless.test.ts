import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { eventually, filesBelow, pause, processTree, type Server, within } from '../harness.js'
import { digest, type FakeUpstream, type Fault } from './fake-upstream.js'
import { faultNamed } from './faults.js'
import { hasty, type Pair, startPair } from './pair.js'

/*
 * Upstreams that never come to an end: bounded in bytes, entries, memory and time, as seen at a real server.
 */

const mebibyte = 1024 * 1024
const indexType = 'application/vnd.oci.image.index.v1+json'

/** Bytes that the processes of a server have in memory. */
function residentBytes(server: Server): number {
  return processTree(server.pid)
    .map((pid) => Number(/^VmRSS:\s+(\d+) kB/m.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1] ?? 0))
    .reduce((sum, kibibytes) => sum + kibibytes * 1024, 0)
}

/** By how much the server's memory grew, at most, while something went on. */
async function growthDuring(server: Server, work: () => Promise<unknown>): Promise<number> {
  const before = residentBytes(server)
  let most = before
  let isDone = false
  const watch = async () => {
    while (!isDone) {
      most = Math.max(most, residentBytes(server))
      await pause(10)
    }
  }
  const watching = watch()
  await work()
  isDone = true
  await watching
  return most - before
}

/** Everything that has no end, at once: by so many clients, each with a repository of its own. */
function pullEverything({ pull }: Pair, subject: string, clients: number, label: string) {
  return Promise.all(
    Array.from({ length: clients }, (_, n) => `/v2/docker.io/${label}/r${n}`).flatMap((name) => [
      pull(`${name}/manifests/latest`),
      pull(`${name}/manifests/${subject}`),
      pull(`${name}/tags/list`),
      pull(`${name}/referrers/${subject}`),
    ]),
  )
}

const reply =
  (body: Buffer, headers: Record<string, string> = {}): Fault =>
  ({ send }) =>
    send({ status: 200, headers: { 'content-type': indexType, ...headers }, body })

const unannounced =
  (body: Buffer): Fault =>
  ({ response }) => {
    response.writeHead(200, { 'content-type': indexType })
    response.end(body)
  }

/** What has no end, by name. */
function endless(upstream: FakeUpstream): Record<string, (path: string) => Fault> {
  const entry = { mediaType: 'application/json', digest: digest('x'), size: 1 }
  const many = Buffer.from(
    JSON.stringify({ manifests: Array(1000).fill(entry), tags: Array(1000).fill('v') }),
  )
  // A million referrers: 110 megabytes.
  const million = Buffer.from(JSON.stringify({ manifests: Array(1_000_000).fill(entry) }))
  return {
    'a body without a bound': () => faultNamed('a body without a bound'),
    'a byte now and then': () => faultNamed('a byte now and then'),
    'a header byte now and then': () => faultNamed('a header byte now and then'),
    'headers without a bound': () => faultNamed('headers without a bound'),
    'a length of 2^60': () => faultNamed('a length of 2^60'),
    'pages without end': (path) =>
      reply(many, { link: `<${upstream.url.origin}${path.split('?')[0]}?last=x>; rel="next"` }),
    'a million entries': () => reply(million),
    'a million entries without a length': () => unannounced(million),
    'four megabytes of one list': () =>
      reply(Buffer.from(`{"manifests":[${' '.repeat(4 * mebibyte - 100)}]}`)),
  }
}

/** Answers to the four questions, in the order of {@link pullEverything}; `undefined` for one that may be any. */
async function askAll(t: Test, pair: Pair, subject: string, name: string, clients: number): Promise<void> {
  const replies = await within(
    20_000,
    name,
    pullEverything(pair, subject, clients, name.replaceAll(/\W+/g, '-').toLowerCase()),
  )
  for (const { path, status, errors, body } of replies) {
    const isManifest = path.includes('/manifests/')
    const isRefused = [404, 429, 502].includes(status) && errors.length > 0
    // Lists may be cut short, or be those of what is here: but nothing is larger than a page.
    const isList = !isManifest && status === 200 && body.length < mebibyte
    if (!isRefused && !isList) t.fail(`${name}: ${path} ended with ${status}: ${body.subarray(0, 200)}`)
  }
}

t.test(
  'S46: endless manifests, tag lists and referrers end, and the server’s memory grows by less than 64 MiB',
  async (t) => {
    const pair = await startPair(t, { mirror: hasty })
    const { upstream, server } = pair
    const subject = upstream.addImage('warm/r0', 'latest', [Buffer.from('layer')])
    await pullEverything(pair, subject, 4, 'warm')
    const kinds = endless(upstream)
    for (const [name, fault] of Object.entries(kinds)) {
      upstream.fault = ({ path }) => fault(path)
      upstream.forget()
      const grown = await growthDuring(server, () => askAll(t, pair, subject, name, 8))
      t.comment(
        `${name}: ${upstream.requests.length} requests, memory grew by ${(grown / mebibyte).toFixed(1)} MiB`,
      )
      t.ok(upstream.requests.length >= 8, `${name}: ${upstream.requests.length} requests`)
      t.ok(grown < 64 * mebibyte, `${name}: ${(grown / mebibyte).toFixed(1)} MiB`)
      upstream.fault = () => undefined
      await eventually('the upstream is asked again', async () => {
        return (await pair.pull('/v2/docker.io/warm/r0/tags/list')).headers.warning === undefined
      })
    }
    t.equal(server.faults.length, 0)
  },
)

t.test(
  'S46: a blob without length and without end takes no more than the manifest that names it says',
  async (t) => {
    const { upstream, server, pull } = await startPair(t, { mirror: hasty })
    const layer = Buffer.alloc(300_000, 'layer')
    upstream.addImage('library/app', 'latest', [layer])
    t.equal((await pull('/v2/docker.io/library/app/manifests/latest')).status, 200)
    upstream.fault = ({ method }) => (method === 'GET' ? faultNamed('a body without a bound') : undefined)
    const path = `/v2/docker.io/library/app/blobs/${digest(layer)}`
    const refused = await within(5000, 'an end', pull(path))
    t.equal(refused.status, 502)
    t.equal(refused.code, 'UPSTREAM_INVALID')
    t.match(refused.errors[0]?.message, /docker\.io sent more than 300000 bytes/)
    t.equal(filesBelow(join(server.data, 'uploads')).length, 0, 'nothing is left of it')
    upstream.fault = ({ method }) =>
      method === 'GET'
        ? ({ response }) => {
            response.writeHead(200)
            response.end(layer)
          }
        : undefined
    const right = await pull(path)
    t.ok(right.body.equals(layer), 'without a length, but with an end, it is served')
  },
)
