import { randomBytes } from 'node:crypto'
import * as http from 'node:http'
import t from 'tap'
import { pool } from '../auth/fixture.js'
import { pause } from '../harness.js'
import { digest, type FakeUpstream } from './fake-upstream.js'
import { user } from './fixture.js'
import { type Pair, startPair } from './pair.js'

/*
 * Many pulls at once, while upstream and server do what they may do at any time: whoever pulls gets what he asked for.
 */

const indexType = 'application/vnd.oci.image.index.v1+json'

interface Descriptor {
  readonly digest: string
}

/** What is wrong with a reply that should have the content of a digest; undefined when nothing is. */
function faultOf(reply: { status: number; body: Buffer; path: string }, name: string): string | undefined {
  if (reply.status !== 200) return `${reply.path}: ${reply.status} ${reply.body.subarray(0, 300)}`
  return digest(reply.body) === name ? undefined : `${reply.path}: other bytes`
}

/** Pulls an image as clients do, all platforms of it. @returns what went wrong; nothing when all of it is right */
async function pullImage(pull: Pair['pull'], repository: string, reference: string): Promise<string[]> {
  const manifest = await pull(`/v2/docker.io/${repository}/manifests/${reference}`)
  const own = faultOf(manifest, String(manifest.headers['docker-content-digest']))
  if (own !== undefined) return [own]
  const { manifests, config, layers } = manifest.json<{
    manifests?: Descriptor[]
    config?: Descriptor
    layers?: Descriptor[]
  }>()
  const faults = (manifests ?? []).map(({ digest }) => pullImage(pull, repository, digest))
  const blobs = [...(config === undefined ? [] : [config]), ...(layers ?? [])].map(async ({ digest }) =>
    faultOf(await pull(`/v2/docker.io/${repository}/blobs/${digest}`), digest),
  )
  return [...(await Promise.all(faults)).flat(), ...(await Promise.all(blobs))].filter(
    (fault) => fault !== undefined,
  )
}

/** GETs of blobs that came to an upstream. */
const fetched = (upstream: FakeUpstream) => upstream.asked('GET', /\/blobs\//)

t.test('R42: 200 clients ask for one cold blob of 100 MB: it is fetched once', async (t) => {
  const { upstream, server } = await startPair(t, { config: { workers: 2 } })
  const layer = randomBytes(100_000_000)
  const path = `/v2/docker.io/big/app/blobs/${upstream.addBlob('big/app', layer)}`
  /** Reads it to the end, or leaves after so many bytes. @returns bytes that were right, or undefined */
  const read = (most: number) =>
    new Promise<number | undefined>((resolve) => {
      let count = 0
      let isRight = true
      const request = http.get(`${server.url}${path}`, { agent: false }, (response) => {
        response.on('data', (chunk: Buffer) => {
          isRight &&= chunk.equals(layer.subarray(count, count + chunk.length))
          count += chunk.length
          if (count >= most) response.destroy()
        })
        response.on('error', () => undefined).on('close', () => resolve(isRight ? count : undefined))
      })
      request.on('error', () => resolve(undefined))
    })
  // To move 20 GB tells no more than to move one: most leave when they have some of it.
  const counts = await Promise.all(
    Array.from({ length: 200 }, (_, n) => read(n % 20 === 7 ? layer.length : 3_000_000)),
  )
  t.equal(counts.filter((count) => count !== undefined && count >= 3_000_000).length, 200, 'all were served')
  t.equal(counts.filter((count) => count === layer.length).length, 10, 'who stayed has got all of it')
  t.equal(fetched(upstream).length, 1)
  t.equal(upstream.blobBytesSent(digest(layer)), layer.length, 'once')
  t.equal(server.faults.length, 0)
})

/** Images, each in a repository of its own. @returns names of the repositories */
function addImages(upstream: FakeUpstream, count: number, size: number): string[] {
  return Array.from({ length: count }, (_, n) => {
    upstream.addImage(`team${n % 10}/app${n}`, 'latest', [randomBytes(size)])
    return `team${n % 10}/app${n}`
  })
}

t.test('R45: collections run all the time through 1,000 cold pulls: none fails', async (t) => {
  const { upstream, server, pull } = await startPair(t, {
    config: { workers: 2, gc: { interval: '10ms', grace: '1s' } },
  })
  const repositories = addImages(upstream, 334, 2000) // a manifest, a config and a layer each
  const cold = await pool(12, repositories, (repository) => pullImage(pull, repository, 'latest'))
  t.strictSame(cold.flat(), [])
  const { text } = await server.request('GET', '/metrics')
  const runs = Number(/^boathouse_gc_runs_total (\d+)$/m.exec(text)?.[1])
  t.ok(runs >= 10, `${runs} collections`)
  await upstream.stop()
  const warm = await pool(12, repositories, (repository) => pullImage(pull, repository, 'latest'))
  t.strictSame(warm.flat(), [], 'and all of it is kept')
  t.comment(`${runs} collections`)
})

t.test('R46: a tag moves every 10 ms: each pull of it fits together', async (t) => {
  const { upstream, pull } = await startPair(t, {
    mirror: { freshness: '0s' },
    config: { workers: 2 },
  })
  const describe = (name: string) => ({
    mediaType: 'application/vnd.oci.image.manifest.v1+json',
    digest: name,
    size: 2,
  })
  const versions = Array.from({ length: 6 }, () => {
    const platforms = ['amd64', 'arm64'].map((architecture) => ({
      ...describe(upstream.addImage('moving/app', undefined, [randomBytes(30_000)])),
      platform: { os: 'linux', architecture },
    }))
    return { schemaVersion: 2, mediaType: indexType, manifests: platforms }
  })
  let isMoving = true
  let moves = 0
  const move = async () => {
    while (isMoving) {
      upstream.addManifest('moving/app', 'latest', versions[moves++ % versions.length], indexType)
      await pause(10)
    }
  }
  const moving = move()
  const pulls = await pool(8, Array(200).fill('latest'), (tag: string) => pullImage(pull, 'moving/app', tag))
  isMoving = false
  await moving
  t.strictSame(pulls.flat(), [])
  t.ok(moves >= 10, `it moved ${moves} times`)
})

/** Pulls images of one repository, 50 at once, until its tokens have ended several times. @returns what went wrong */
async function pullWhileTokensEnd({ upstream, pull }: Pair, tokens: () => number): Promise<string[]> {
  const faults: string[] = []
  const before = tokens()
  for (let crowd = 0; tokens() < before + 4 && faults.length === 0; crowd++) {
    const tags = Array.from({ length: 50 }, (_, n) => `v${crowd}-${n}`)
    for (const tag of tags) upstream.addImage('team/app', tag, [randomBytes(3000)])
    const pulls = tags.map((tag) => pullImage(pull, 'team/app', tag))
    faults.push(...(await Promise.all(pulls)).flat())
  }
  return faults
}

t.test('R47: tokens end after a second under 50 pulls at once: nobody sees a 401', async (t) => {
  const pair = await startPair(t, {
    upstream: { auth: 'bearer', user, tokenLife: 1 },
    mirror: user,
    config: { workers: 2 },
  })
  const { upstream, server } = pair
  const tokens = () => upstream.asked('GET', /^\/token/).length
  t.strictSame(await pullWhileTokensEnd(pair, tokens), [])
  t.comment(`${tokens()} tokens for ${upstream.requests.length - tokens()} requests`)
  t.ok(tokens() < upstream.requests.length / 4, 'they are shared')
  t.strictSame(
    server.logs().filter(({ status }) => status === 401 || status === 500),
    [],
  )
})
