import { randomBytes } from 'node:crypto'
import { lstatSync } from 'node:fs'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { eventually, filesBelow, pause, pushBlobs, randomBlob, type Server, startServer } from '../harness.js'
import { digest, startFakeUpstream } from './fake-upstream.js'

/*
 * What mirrors hold has bounds: measured in files, not in what the index says of them.
 */

const mebibyte = 1024 * 1024

async function startBounded(t: Test, budget: string, config: Record<string, unknown> = {}) {
  const upstream = await startFakeUpstream(t)
  const mirrors = [{ name: 'docker.io', url: upstream.url.origin, budget }]
  const server = await startServer(t, { config: { mirrors, ...config } })
  const pull = (repository: string, blob: string) =>
    server.request('GET', `/v2/docker.io/${repository}/blobs/${blob}`)
  return { upstream, server, pull }
}

/** Bytes of the files of blobs, and of those that come in; a file that goes meanwhile has none. */
function bytesOnDisk(server: Server): number {
  const files = ['blobs', 'uploads'].flatMap((folder) => {
    const path = join(server.data, folder)
    return filesBelow(path).map((file) => join(path, file))
  })
  return files.reduce((sum, file) => sum + (lstatSync(file, { throwIfNoEntry: false })?.size ?? 0), 0)
}

t.test('a mirror stays within its budget while 8 clients pull 200 images through 2 workers', async (t) => {
  const { upstream, server, pull } = await startBounded(t, '4MiB', { workers: 2 })
  const pushed = randomBlob(300_000)
  await pushBlobs(server, 'team/app', pushed)
  const layers = Array.from({ length: 200 }, () => randomBytes(20_000 + Math.floor(Math.random() * 500_000)))
  for (const [at, layer] of layers.entries()) upstream.addImage(`library/image${at}`, 'latest', [layer])
  let isDone = false
  let most = 0
  const measure = async () => {
    while (!isDone) {
      most = Math.max(most, bytesOnDisk(server))
      await pause(5)
    }
  }
  const measured = measure()
  const rest = layers.entries()
  let right = 0
  const client = async () => {
    for (const [at, layer] of rest) {
      const reply = await pull(`library/image${at}`, digest(layer))
      if (reply.status === 200 && reply.body.equals(layer)) right++
    }
  }
  await Promise.all(Array.from({ length: 8 }, client))
  isDone = true
  await measured
  t.equal(right, 200)
  const bound = 4 * mebibyte + 520_000 + pushed.bytes.length
  t.ok(most > 3 * mebibyte, `${most} bytes were seen`)
  t.ok(most <= bound, `${most} bytes of ${bound}`)
  const kept = await server.request('GET', `/v2/team/app/blobs/${pushed.digest}`)
  t.ok(kept.body.equals(pushed.bytes), 'what was pushed is whole')
  t.equal(server.faults.length, 0)
})

t.test('what was pulled longest ago goes first, and what was pushed here stays on the disk', async (t) => {
  const { upstream, server, pull } = await startBounded(t, '1MiB')
  const [shared, second, third] = [randomBytes(400_000), randomBytes(400_000), randomBytes(400_000)]
  await pushBlobs(server, 'team/app', { ...randomBlob(1), bytes: shared, digest: digest(shared) })
  for (const layer of [shared, second, third]) {
    upstream.addBlob('library/app', layer)
    t.ok((await pull('library/app', digest(layer))).body.equals(layer))
    await eventually('it is stored', () =>
      filesBelow(server.data).some((file) => file.includes(digest(layer).slice(7))),
    )
  }
  await upstream.stop()
  t.equal((await pull('library/app', digest(shared))).status, 502, 'the oldest is gone from the mirror')
  for (const layer of [second, third]) t.equal((await pull('library/app', digest(layer))).status, 200)
  const kept = await server.request('GET', `/v2/team/app/blobs/${digest(shared)}`)
  t.ok(kept.body.equals(shared))
})

t.test('a blob larger than the budget is served, not kept, and takes no room from others', async (t) => {
  const { upstream, server, pull } = await startBounded(t, '1MiB')
  const [small, large] = [randomBytes(500_000), randomBytes(3_000_000)]
  for (const layer of [small, large]) {
    upstream.addBlob('library/app', layer)
    t.ok((await pull('library/app', digest(layer))).body.equals(layer))
  }
  await eventually('the disk has its space back', () => bytesOnDisk(server) === small.length)
  await upstream.stop()
  t.ok((await pull('library/app', digest(small))).body.equals(small))
})

t.test('a floor that cannot be kept refuses what is not here, naming the setting', async (t) => {
  const { upstream, server, pull } = await startBounded(t, '1MiB', { disk: { floor: '1000TiB' } })
  const layer = randomBytes(1000)
  upstream.addBlob('library/app', layer)
  const reply = await pull('library/app', digest(layer))
  t.equal(reply.status, 507)
  t.match(reply.text, /disk\.floor/)
  t.equal(bytesOnDisk(server), 0, 'nothing is left of it')
  const pushed = randomBlob(1000)
  const path = `/v2/team/app/blobs/uploads/?digest=${pushed.digest}`
  const push = await server.request('POST', path, { body: pushed.bytes, unchecked: true })
  t.equal(push.status, 507, 'pushes keep the floor, too')
  t.match(push.text, /disk\.floor/)
})
