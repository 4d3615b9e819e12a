import { randomBytes } from 'node:crypto'
import t, { type Test } from 'tap'
import { did, type Run, refused } from '../commands.js'
import { eventually, filesBelow, image, push, type Server, startServer } from '../harness.js'
import { digest, type FakeExchange, type FakeUpstream } from './fake-upstream.js'
import { addPlatforms, arrived, holdBlob, slow, startSyncing } from './sync-fixture.js'

/*
 * What is fetched ahead: with a server and without, interrupted and killed, and what becomes of what cannot be had.
 */

const name = 'library/app'

/** Asserts that everything of these is served without an upstream. */
async function served(t: Test, server: Server, repository: string, manifests: string[], blobs: Buffer[]) {
  for (const reference of manifests) {
    const { status } = await server.request('GET', `/v2/docker.io/${repository}/manifests/${reference}`)
    t.equal(status, 200, `manifest ${reference}`)
  }
  for (const blob of blobs) {
    const { status, body } = await server.request('GET', `/v2/docker.io/${repository}/blobs/${digest(blob)}`)
    t.ok(status === 200 && body.equals(blob), `blob of ${blob.length} bytes`)
  }
}

/** Bytes of blobs that the upstream has sent. */
function sent(upstream: FakeUpstream, ...blobs: Buffer[]): number {
  return blobs.reduce((sum, blob) => sum + upstream.blobBytesSent(digest(blob)), 0)
}

const answerOf = ({ stdout }: Run) => JSON.parse(stdout)

t.test('of an index the wanted platforms are fetched, and what belongs to them', async (t) => {
  const images = [{ repository: name, tags: ['1.*'], platforms: ['linux/amd64', 'linux/arm64/v8'] }]
  const { upstream, run, serve } = await startSyncing(t, { images, upstream: { pageSize: 2 } })
  const platforms = ['linux/amd64', 'linux/arm64', 'linux/arm/v7', 'windows/amd64']
  const one = addPlatforms(upstream, name, '1.1', platforms)
  const two = addPlatforms(upstream, name, '1.2', platforms)
  for (const tag of ['2.0', 'latest', 'edge', '0.1']) upstream.addImage(name, tag, [randomBytes(100)])
  const first = await run('mirror', 'sync')
  t.equal(first.code, 0, first.stderr)
  t.match(first.stdout, /^docker\.io: 2 of 2 images are here; fetched \d+\.\d KiB in \d+ s\.\n$/)
  t.equal(upstream.asked('GET', /manifests\/(?:2\.0|latest|edge|0\.1)/).length, 0, 'no other tags')

  upstream.forget()
  const again = answerOf(await run('mirror', 'sync', '--json'))
  t.match(again.mirrors, [{ mirror: 'docker.io', missingBlobs: 0, missingBytes: 0, fetchedBytes: 0 }])
  t.same(
    [...new Set(upstream.requests.map(({ method, path }) => `${method} ${path.replace(/\?.*/, '')}`))].sort(),
    [`GET /v2/${name}/tags/list`, `HEAD /v2/${name}/manifests/1.1`, `HEAD /v2/${name}/manifests/1.2`],
    'what is here is not fetched again',
  )

  await upstream.stop()
  const server = await serve()
  for (const { index, shared, parts } of [one, two]) {
    const { 'linux/amd64': amd, 'linux/arm64': arm } = parts
    if (amd === undefined || arm === undefined) throw new Error('there are such parts')
    const manifests = [index, amd.manifest, arm.manifest, amd.attestation, arm.attestation]
    await served(t, server, name, manifests, [shared, amd.layer, arm.layer])
    for (const platform of ['linux/arm/v7', 'windows/amd64']) {
      for (const reference of [parts[platform]?.manifest, parts[platform]?.attestation]) {
        const { status } = await server.request('GET', `/v2/docker.io/${name}/manifests/${reference}`)
        t.equal(status, 502, `${platform} was not fetched`)
      }
    }
  }
  await served(t, server, name, ['1.1', '1.2'], [])
})

t.test('a tag that has moved is fetched anew, however fresh it was', async (t) => {
  const images = [{ repository: name, tags: ['latest'] }]
  const { upstream, run, serve } = await startSyncing(t, { images, mirror: { freshness: '30d' } })
  const [old, recent] = [randomBytes(1000), randomBytes(1000)]
  upstream.addImage(name, 'latest', [old])
  t.equal((await run('mirror', 'sync')).code, 0)
  const moved = upstream.addImage(name, 'latest', [recent])
  t.equal((await run('mirror', 'sync')).code, 0)
  await upstream.stop()
  const server = await serve()
  const { headers } = await server.request('GET', `/v2/docker.io/${name}/manifests/latest`)
  t.equal(headers['docker-content-digest'], moved)
  await served(t, server, name, [], [old, recent])
})

t.test('a dry run says what would be fetched, and stores nothing', async (t) => {
  const images = [{ repository: name, tags: ['latest'], platforms: ['linux/amd64'] }]
  const { upstream, run, data } = await startSyncing(t, { images })
  addPlatforms(upstream, name, 'latest', ['linux/amd64', 'linux/s390x'])
  const before = filesBelow(data).filter((file) => /^(?:blobs|uploads)/.test(file))
  const dry = await run('mirror', 'sync', '--dry-run')
  t.equal(dry.code, 0, dry.stderr)
  t.match(dry.stdout, /^IMAGE +BYTES +TO FETCH\ndocker\.io\/library\/app:latest +69\.\d KiB +69\.\d KiB\n/)
  t.match(dry.stdout, /would fetch 5 blobs, 69\.\d KiB; 0 blobs, 0 B, are here\.\n$/)
  t.equal(upstream.asked('GET', /blobs/).length, 0)
  t.same(
    filesBelow(data).filter((file) => /^(?:blobs|uploads)/.test(file)),
    before,
  )
  t.equal((await run('mirror', 'sync')).code, 0)
  const after = answerOf(await run('mirror', 'sync', 'docker.io', '--dry-run', '--json'))
  t.match(after, { dryRun: true, mirrors: [{ missingBytes: 0, blobs: 5, images: [{ state: 'complete' }] }] })
})

t.test('a dry run counts what another repository holds as here: it is linked, not fetched', async (t) => {
  const images = [name, 'library/other'].map((repository) => ({ repository, tags: ['latest'] }))
  const { upstream, run } = await startSyncing(t, { images })
  const layer = randomBytes(50_000)
  upstream.addImage(name, 'latest', [layer])
  t.equal((await run('mirror', 'sync')).code, 1, 'one is not there yet')
  upstream.addImage('library/other', 'latest', [layer, randomBytes(20_000)])
  const [preview] = answerOf(await run('mirror', 'sync', '--dry-run', '--json')).mirrors
  t.match(preview, { blobs: 4, missingBlobs: 2 })
  t.ok(preview.missingBytes < 50_000, `${preview.missingBytes} bytes`)
})

t.test('what cannot be had is named, and all else is fetched', async (t) => {
  const images = [
    { repository: name, tags: ['gone'] },
    { repository: name, tags: ['9.*', 'also'] },
    { repository: 'secret/app', tags: ['latest'] },
    { repository: name, tags: ['bad', 'good'] },
    { repository: name, tags: ['platforms'], platforms: ['linux/riscv64'] },
  ]
  const { upstream, run } = await startSyncing(t, { images, mirror: { deny: ['secret/**'] } })
  const [good, bad] = [randomBytes(3000), randomBytes(3000)]
  upstream.addImage(name, 'good', [good])
  upstream.addImage(name, 'also', [good])
  upstream.addImage(name, 'bad', [bad])
  addPlatforms(upstream, name, 'platforms', ['linux/amd64'])
  upstream.fault = ({ path }) =>
    path.endsWith(digest(bad))
      ? ({ send, reply }) => send({ ...reply, body: Buffer.alloc(reply.body.length) })
      : undefined
  const { code, stdout } = await run('mirror', 'sync')
  t.equal(code, 1)
  const lines = stdout.split('\n')
  t.match(lines[0], /^docker\.io\/library\/app:gone: docker\.io: \S+ does not have it$/)
  t.equal(lines[1], 'docker.io/library/app:9.*: no tag there fits 9.*')
  t.equal(lines[2], 'docker.io/secret/app:latest: the mirror of docker.io is set up not to fetch secret/app')
  t.match(
    lines[3],
    /^docker\.io\/library\/app:bad: docker\.io sent bytes with the digest sha256:\w+ for blob/,
  )
  t.equal(lines[4], 'docker.io/library/app:platforms: there is nothing of it for linux/riscv64')
  t.match(lines[5], /^docker\.io: 2 of 7 images are here, 5 failed; fetched /)
  upstream.fault = () => undefined
  const again = answerOf(await run('mirror', 'sync', '--json'))
  const states = again.mirrors[0].images.map(({ state }: { state: string }) => state)
  t.same(states, ['failed', 'complete', 'failed', 'failed', 'complete', 'complete', 'failed'])
})

t.test('images that share a layer fetch it once', async (t) => {
  const images = ['one', 'two', 'three'].map((name) => ({ repository: `library/${name}`, tags: ['1'] }))
  const { upstream, run, serve } = await startSyncing(t, { images })
  const shared = randomBytes(200_000)
  for (const { repository } of images) upstream.addImage(repository, '1', [shared])
  t.equal((await run('mirror', 'sync')).code, 0)
  t.equal(sent(upstream, shared), shared.length)
  await upstream.stop()
  const server = await serve()
  for (const { repository } of images) await served(t, server, repository, ['1'], [shared])
})

for (const how of ['SIGINT', 'SIGKILL'] as const) {
  t.test(`after ${how} in the middle of a blob the next sync goes on from there`, async (t) => {
    const images = [{ repository: name, tags: ['1'] }]
    const { upstream, data, run, start } = await startSyncing(t, { images })
    const [layer, small] = [randomBytes(4_000_000), randomBytes(3000)]
    upstream.addImage(name, '1', [small, layer])
    const { held } = holdBlob(upstream, layer)
    const sync = start('mirror', 'sync')
    await eventually('some of the blob has come', () => held() && arrived(data) > 1_000_000, slow)
    await eventually(
      'all else is here',
      async () => {
        const [{ missingBytes }] = answerOf(await run('mirror', 'sync', '--dry-run', '--json')).mirrors
        return missingBytes === layer.length
      },
      slow,
    )
    sync.child.kill(how)
    const { code, stderr, stdout } = await sync.done
    if (how === 'SIGINT') {
      t.equal(code, 1)
      t.match(stdout, /^docker\.io: 0 of 1 images are here, 1 in part; fetched /)
      t.match(stderr, /Interrupted: the next sync goes on from there\.\n$/)
    }
    const kept = arrived(data)
    t.ok(kept > 1_000_000, `${kept} bytes were kept`)
    upstream.forget()
    await did(t, run('mirror', 'sync'))
    const [request] = upstream.asked('GET', new RegExp(digest(layer)))
    t.equal(request?.headers.range, `bytes=${kept}-`)
    t.equal(sent(upstream, layer), layer.length - kept)
    t.equal(sent(upstream, small), 0, 'what was whole is not fetched again')
  })
}

t.test('one sync at a time', async (t) => {
  const images = [{ repository: name, tags: ['1'] }]
  const { upstream, start, run } = await startSyncing(t, { images })
  const layer = randomBytes(100_000)
  upstream.addImage(name, '1', [layer])
  const { held, release } = holdBlob(upstream, layer)
  const sync = start('mirror', 'sync')
  await eventually('the sync is at it', held, slow)
  await refused(t, run('mirror', 'sync'), 1, /^Another sync is at work: wait for its end\.$/m)
  release()
  t.equal((await sync.done).code, 0)
})

t.test('the images that the budget has no room for are named, and drive nothing out', async (t) => {
  const images = ['one', 'two', 'three'].map((one) => ({ repository: `library/${one}`, tags: ['1'] }))
  const { upstream, run } = await startSyncing(t, { images, mirror: { budget: '1MiB' } })
  for (const { repository } of images) upstream.addImage(repository, '1', [randomBytes(400_000)])
  for (const expected of [800_000, 0]) {
    const synced = await run('mirror', 'sync', '--json')
    t.equal(synced.code, 1)
    const [{ images: reported, fetchedBytes }] = answerOf(synced).mirrors
    t.match(reported, [
      { state: 'complete' },
      { state: 'complete' },
      { state: 'failed', reason: /^does not fit into the budget of 1048576 bytes/ },
    ])
    const isRight = fetchedBytes >= expected && fetchedBytes <= expected * 1.01
    t.ok(isRight, `${fetchedBytes} bytes were fetched`)
  }
})

t.test(
  'an upstream that asks for a pause gets it; one that asks for hours is given up at once',
  async (t) => {
    const images = [{ repository: name, tags: ['1', '2', '3'] }]
    const { upstream, run } = await startSyncing(t, { images })
    for (const tag of ['1', '2', '3']) upstream.addImage(name, tag, [randomBytes(1000)])
    const limited = (seconds: string) => (exchange: FakeExchange) =>
      exchange.send({ status: 429, headers: { 'retry-after': seconds }, body: Buffer.from('{}') })
    let count = 0
    upstream.fault = ({ path }) => (path.includes('/manifests/') && ++count === 2 ? limited('1') : undefined)
    t.equal((await run('mirror', 'sync')).code, 0, 'a second is waited for')
    upstream.forget()
    upstream.fault = () => limited('3600')
    const { code, stdout } = await run('mirror', 'sync')
    t.equal(code, 1)
    t.match(stdout, /app:3: docker\.io: \S+ allows no more requests for \d+ s\n/)
    t.ok(upstream.requests.length <= 4, `it was asked ${upstream.requests.length} times`)
  },
)

t.test('an upstream that is away is given up after some seconds', async (t) => {
  const tags = Array.from({ length: 50 }, (_, at) => `v${at}`)
  const { upstream, run } = await startSyncing(t, { images: [{ repository: name, tags }] })
  await upstream.stop()
  const { code, stdout } = await run('mirror', 'sync')
  t.equal(code, 1)
  t.match(stdout, /app:v49: docker\.io: .*refused the connection\)?\n/)
  t.match(stdout, /\ndocker\.io: 0 of 50 images are here, 50 failed; fetched 0 B /)
})

t.test('what was pushed here is never looked up upstream', async (t) => {
  const images = [{ repository: 'team/app', tags: ['latest'] }]
  const { upstream, data, run } = await startSyncing(t, { images })
  upstream.addImage('team/app', 'latest', [randomBytes(100)])
  const before = await startServer(t, { data })
  await push(before, 'docker.io/team/app', 'latest', image())
  await before.stop()
  const { code, stdout } = await run('mirror', 'sync')
  t.equal(code, 1)
  t.match(stdout, /^docker\.io\/team\/app:latest: docker\.io\/team\/app holds what was pushed here/)
  t.equal(upstream.requests.length, 0)
})

t.test('what is asked for must make sense', async (t) => {
  const { run } = await startSyncing(t, { images: [{ repository: name, tags: ['1'] }] })
  await refused(t, run('mirror', 'sync', 'quay.io'), 1, /^There is no mirror quay\.io/)
  await refused(t, run('mirror', 'sync', 'docker.io', 'more'), 2, /^There are words after NAME/)
  await refused(t, run('mirror'), 2, /^Say what to do: .* mirror followed by one of /)
})
