import { execFileSync } from 'node:child_process'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import {
  eventually,
  everyReplyKeptTheRules,
  filesBelow,
  image,
  newRepository,
  openUpload,
  push,
  type Reply,
  randomBlob,
  type Server,
  scratchDir,
  startServer,
} from './harness.js'

const folder = scratchDir(t)

/** A small filesystem of its own, where this user may make one. */
function mountSmall(): boolean {
  try {
    execFileSync('mount', ['-t', 'tmpfs', '-o', 'size=24m', 'boathouse-test', folder], { stdio: 'ignore' })
    return true
  } catch {
    return false
  }
}

const mounted = mountSmall()
t.teardown(() => {
  if (mounted) execFileSync('umount', ['-l', folder])
})

/** Asserts the answer to a push that finds the disk full. */
function isFull(t: Test, reply: Reply) {
  t.equal(reply.status, 507, reply.text)
  t.equal(reply.code, 'STORAGE_FULL')
  t.match(reply.errors[0]?.message, /full/)
}

t.test('R51: a full disk', { skip: mounted ? false : 'needs the right to mount' }, async (t) => {
  const server: Server = await startServer(t, { data: join(folder, 'data') })
  const repository = newRepository('full')
  const manifest = image({ layers: [randomBlob(1_000_000)] })
  await push(server, repository, 'x', manifest)
  const big = randomBlob(40_000_000)

  await t.test('a push is answered with 507 and a sentence, in every form', async (t) => {
    const uploads = `/v2/${repository}/blobs/uploads/`
    const post = await server.request('POST', `${uploads}?digest=${big.digest}`, {
      body: big.bytes,
      fresh: true,
      unchecked: true,
    })
    isFull(t, post)
    const location = await openUpload(server, repository)
    const patched = await server.request('PATCH', location, {
      body: big.bytes,
      fresh: true,
      chunked: true,
      unchecked: true,
    })
    isFull(t, patched)
    t.equal((await server.request('DELETE', location)).status, 204)
  })

  await t.test(
    'what was there is served, the bytes of refused pushes are gone, small pushes go on',
    async (t) => {
      const pulled = await server.request('GET', `/v2/${repository}/manifests/x`)
      t.ok(pulled.body.equals(manifest.bytes))
      const layer = manifest.parts[1]
      const read = await server.request('GET', `/v2/${repository}/blobs/${layer?.digest}`)
      t.ok(layer && read.body.equals(layer.bytes))
      await eventually('no bytes stay', () => filesBelow(join(server.data, 'uploads')).length === 0)
      await push(server, repository, 'small', image())
    },
  )

  await t.test('when there is room again, everything goes on without a restart', async (t) => {
    execFileSync('mount', ['-o', 'remount,size=200m', folder])
    const path = `/v2/${repository}/blobs/uploads/?digest=${big.digest}`
    t.equal((await server.request('POST', path, { body: big.bytes })).status, 201)
    await push(server, repository, 'y', image())
    t.same(await server.stop(), { code: 0, signal: null })
  })
  everyReplyKeptTheRules(t)
})
