import { randomBytes } from 'node:crypto'
import { join } from 'node:path'
import t from 'tap'
import { eventually, filesBelow, image, push, type Server, startServer } from '../harness.js'
import { digest, type FakeUpstream, type Fault, startFakeUpstream } from './fake-upstream.js'
import { faultNamed } from './faults.js'
import { mirrorOf, startPair } from './pair.js'

/*
 * One blob in several repositories and mirrors: it is stored once, shown where the upstream shows it, and goes
 * when nobody has it any more.
 */

const blobPath = (name: string, bytes: Buffer) => `/v2/docker.io/${name}/blobs/${digest(bytes)}`

/** Waits until so many blobs are stored, and nothing is under way. */
function stored(server: Server, count: number): Promise<unknown> {
  return eventually('the blobs are stored', async () => {
    const { text } = await server.request('GET', '/metrics')
    const isQuiet = /^boathouse_open_uploads 0$/m.test(text)
    return isQuiet && filesBelow(join(server.data, 'blobs')).length === count
  })
}

/** GETs of blobs that came to an upstream. */
const fetched = (upstream: FakeUpstream) => upstream.asked('GET', /\/blobs\//).length

t.test(
  'a blob that another repository holds is not fetched again, if the upstream has it there',
  async (t) => {
    const { upstream, server, pull } = await startPair(t)
    const layer = randomBytes(100_000)
    for (const name of ['library/one', 'library/two']) upstream.addBlob(name, layer)
    t.equal((await pull(blobPath('library/one', layer))).status, 200)
    await stored(server, 1)
    t.ok((await pull(blobPath('library/two', layer))).body.equals(layer))
    t.equal(fetched(upstream), 1)
    t.equal(
      (await pull(blobPath('library/three', layer))).status,
      404,
      'S20: but not where it does not have it',
    )
  },
)

t.test(
  'an upstream that answers HEAD of a blob with 405: what another repository holds is served',
  async (t) => {
    const { upstream, server, pull } = await startPair(t)
    const layer = randomBytes(100_000)
    for (const name of ['library/one', 'library/two']) upstream.addBlob(name, layer)
    t.equal((await pull(blobPath('library/one', layer))).status, 200)
    await stored(server, 1)
    upstream.fault = ({ method, path }) =>
      method === 'HEAD' && path.includes('/blobs/')
        ? ({ send }) => send({ status: 405, headers: {}, body: Buffer.alloc(0) })
        : undefined
    const reply = await pull(blobPath('library/two', layer))
    t.equal(reply.status, 200)
    t.ok(reply.body.equals(layer))
    await stored(server, 1)
    const third = await pull(blobPath('library/three', layer))
    t.equal(third.status, 404, 'S20: but not where it does not have it')
    await upstream.stop()
    t.ok((await pull(blobPath('library/two', layer))).body.equals(layer), 'and kept')
  },
)

t.test('what a transfer that was cut off has left goes when the blob comes in another way', async (t) => {
  const { upstream, server, pull } = await startPair(t)
  const layer = randomBytes(300_000)
  for (const name of ['library/one', 'library/two']) upstream.addBlob(name, layer)
  const half: Fault = (exchange) => faultNamed('cut at 8/16')(exchange)
  let isFirst = true
  upstream.fault = ({ method, path }) => {
    if (method !== 'GET' || !path.includes('library/two')) return undefined
    const fault = isFirst ? half : faultNamed('a reset')
    isFirst = false
    return fault
  }
  await pull(blobPath('library/two', layer)).catch(() => undefined)
  const uploads = join(server.data, 'uploads')
  t.equal(filesBelow(uploads).length, 1, 'half of it is kept for the next try')
  t.ok((await pull(blobPath('library/one', layer))).body.equals(layer))
  await eventually('it is stored and recorded', async () =>
    /^boathouse_blobs 1$/m.test((await server.request('GET', '/metrics')).text),
  )
  upstream.fault = () => undefined
  await eventually('the upstream is asked again', async () => {
    const reply = await pull(blobPath('library/two', layer))
    return reply.status === 200 && reply.body.equals(layer)
  })
  t.equal(filesBelow(uploads).length, 0)
  await stored(server, 1)
})

t.test('R12: two images share a layer; one is evicted, and the other is pulled as before', async (t) => {
  const [hub, other] = [await startFakeUpstream(t), await startFakeUpstream(t)]
  const mirrors = [
    mirrorOf(hub, { budget: '1MiB' }),
    { ...mirrorOf(other), name: 'ghcr.io', bareNames: false },
  ]
  const config = { mirrors, gc: { interval: '1s', grace: '1s' } }
  const server = await startServer(t, { config })
  const pull = (path: string) => server.request('GET', path, { unchecked: true })
  const shared = randomBytes(400_000)
  const mine = {
    bytes: shared,
    digest: digest(shared),
    size: shared.length,
    mediaType: 'application/vnd.oci.image.layer.v1.tar',
  }
  const own = image({ layers: [mine] })
  hub.addImage('a/app', 'latest', [shared])
  const second = other.addImage('b/app', 'latest', [shared])
  const pullImage = async (repository: string, tag: string) => {
    const manifest = await pull(`/v2/${repository}/manifests/${tag}`)
    if (manifest.status !== 200) return [manifest.status]
    const { config, layers } = manifest.json<{ config: { digest: string }; layers: { digest: string }[] }>()
    const blobs = []
    for (const { digest: name } of [config, ...layers]) {
      const reply = await pull(`/v2/${repository}/blobs/${name}`)
      blobs.push(reply.status === 200 && digest(reply.body) !== name ? 0 : reply.status)
    }
    return [manifest.status, ...blobs]
  }
  t.strictSame(await pullImage('docker.io/a/app', 'latest'), [200, 200, 200])
  t.strictSame(await pullImage('ghcr.io/b/app', 'latest'), [200, 200, 200])
  await push(server, 'team/app', 'latest', own)
  for (let n = 0; n < 3; n++) {
    const layer = randomBytes(400_000)
    hub.addBlob('a/other', layer)
    t.equal((await pull(blobPath('a/other', layer))).status, 200)
  }
  for (const upstream of [hub, other]) await upstream.stop()
  await eventually('the layer is evicted from the one mirror', async () => {
    return (await pull(blobPath('a/app', shared))).status === 502
  })
  const collections = async () =>
    Number(/^boathouse_gc_runs_total\S* (\d+)/m.exec((await pull('/metrics')).text)?.[1] ?? 0)
  const before = await collections()
  await eventually('two collections have ended', async () => (await collections()) >= before + 2)
  t.strictSame(await pullImage('ghcr.io/b/app', second), [200, 200, 200], 'the other mirror’s is whole')
  t.strictSame(await pullImage('ghcr.io/b/app', 'latest'), [200, 200, 200])
  t.strictSame(await pullImage('team/app', 'latest'), [200, 200, 200], 'so is what was pushed here')
  await hub.start()
  await eventually('the evicted image is pulled again', async () => {
    const got = await pullImage('docker.io/a/app', 'latest')
    return got.length === 3 && got.every((status) => status === 200)
  })
  t.equal(hub.asked('GET', new RegExp(digest(shared))).length, 1, 'without fetching the layer once more')
})
