import { randomBytes } from 'node:crypto'
import t, { type Test } from 'tap'
import { Fill } from '../../src/mirror/fill.js'
import type { FillContext, FillTask } from '../../src/mirror/fill-task.js'
import { digestOf } from '../../src/oci/digest.js'
import { parseRepositoryName } from '../../src/oci/reference.js'
import { runCommand } from '../commands.js'
import { eventually, type Server, sha256, sha512, startServer } from '../harness.js'
import { digest, type FakeUpstream, startFakeUpstream } from './fake-upstream.js'
import { mirrorOf } from './pair.js'

/*
 * S89: bytes that are here for somebody else are lent to a mirror only after its own upstream has delivered them.
 */

const names = ['open.test', 'other.test'] as const

async function startBoth(t: Test) {
  const [upstream, other] = [await startFakeUpstream(t), await startFakeUpstream(t)]
  const settings = [upstream, other].map((one, at) => mirrorOf(one, { name: names[at], bareNames: false }))
  const [first = {}, second] = settings
  const mirrors = [{ ...first, sync: { images: [{ repository: 'lied/about', tags: ['latest'] }] } }, second]
  return { upstream, other, mirrors, server: await startServer(t, { config: { mirrors } }) }
}

/** GETs a blob to its end, whatever that is. @returns the bytes that came */
async function bytesOf(server: Server, path: string): Promise<Buffer> {
  const reply = await fetch(`${server.url}${path}`)
  const chunks: Uint8Array[] = []
  try {
    for await (const chunk of reply.body ?? []) chunks.push(chunk)
  } catch {
    // It was cut off.
  }
  return Buffer.concat(chunks)
}

/** Answers for blobs as if it had this one. @param body what it sends for it; undefined for 404 */
function lie(upstream: FakeUpstream, size: number, body: Buffer | undefined): void {
  upstream.fault = ({ method, path }) => {
    if (!path.includes('/blobs/')) return undefined
    return ({ send }) => {
      if (method === 'GET' && body === undefined) send({ status: 404, headers: {}, body: Buffer.alloc(0) })
      else {
        const headers = { 'content-type': 'application/octet-stream', 'content-length': String(size) }
        send({ status: 200, headers, body: method === 'HEAD' ? Buffer.alloc(0) : (body ?? Buffer.alloc(0)) })
      }
    }
  }
}

t.test('S89: no word of an upstream opens a blob that it has not delivered', async (t) => {
  const { upstream, other, mirrors, server } = await startBoth(t)
  const secret = randomBytes(400_000)
  for (const name of [sha256(secret), sha512(secret)]) {
    const query = `digest=${name}`
    t.equal(
      (await server.request('POST', `/v2/private/app/blobs/uploads/?${query}`, { body: secret })).status,
      201,
    )
  }
  const elsewhere = randomBytes(50_000)
  other.addBlob('theirs/app', elsewhere)
  t.equal((await server.request('GET', `/v2/other.test/theirs/app/blobs/${digest(elsewhere)}`)).status, 200)
  const describe = (bytes: Buffer, name = digest(bytes)) => ({
    mediaType: 'application/vnd.oci.image.layer.v1.tar',
    digest: name,
    size: bytes.length,
  })
  upstream.addManifest('lied/about', 'latest', {
    schemaVersion: 2,
    mediaType: 'application/vnd.oci.image.manifest.v1+json',
    config: describe(secret, sha512(secret)),
    layers: [describe(secret), describe(elsewhere)],
  })
  const place = '/v2/open.test/lied/about'
  const garbage = randomBytes(secret.length)
  for (const isNamed of [false, true]) {
    if (isNamed) t.equal((await server.request('GET', `${place}/manifests/latest`)).status, 200)
    for (const [bytes, name] of [
      [secret, sha256(secret)],
      [secret, sha512(secret)],
      [elsewhere, digest(elsewhere)],
    ] as const) {
      for (const [what, body] of [
        ['nothing', undefined],
        ['other bytes', garbage.subarray(0, bytes.length)],
      ] as const) {
        lie(upstream, bytes.length, body)
        for (let tries = 0; tries < 3; tries++) {
          const got = await bytesOf(server, `${place}/blobs/${name}`)
          const isShown = got.length > 0 && bytes.includes(got.subarray(-Math.min(got.length, 64)))
          t.notOk(isShown, `${name.slice(0, 12)}, ${isNamed ? '' : 'not '}named, it sends ${what}`)
        }
      }
      const mount = await server.request(
        'POST',
        `/v2/mine/app/blobs/uploads/?mount=${name}&from=open.test/lied/about`,
      )
      t.equal(mount.status, 202, 'nor is there anything to mount')
    }
  }
  lie(upstream, secret.length, undefined)
  const env = { BOATHOUSE_MIRRORS: JSON.stringify(mirrors) }
  const synced = await runCommand(server.data, ['mirror', 'sync', 'open.test', '--json'], '', { env })
  t.match(synced.stdout, /"state":\s*"failed"/)
  t.equal((await server.request('GET', `/v2/private/app/blobs/${sha256(secret)}`)).status, 200)

  // What it does have it delivers, and then it is lent, but for a blob of another size.
  upstream.fault = () => undefined
  for (const name of ['one/app', 'two/app', 'three/app']) upstream.addBlob(name, elsewhere)
  const path = (name: string) => `/v2/open.test/${name}/blobs/${digest(elsewhere)}`
  t.ok((await bytesOf(server, path('one/app'))).equals(elsewhere))
  await eventually('it is stored', async () => {
    upstream.forget()
    return (await bytesOf(server, path('one/app'))).equals(elsewhere) && upstream.requests.length === 0
  })
  t.ok((await bytesOf(server, path('two/app'))).equals(elsewhere))
  t.equal(upstream.asked('GET', /blobs/).length, 0, 'lent')
  upstream.fault = ({ method, reply }) =>
    method === 'HEAD'
      ? ({ send }) => send({ ...reply, headers: { ...reply.headers, 'content-length': '7' } })
      : undefined
  t.ok((await bytesOf(server, path('three/app'))).equals(elsewhere))
  t.equal(upstream.asked('GET', /blobs/).length, 1, 'another size: it is to show its own')
})

t.test('S89: a reader of a fill that fails is never given what the store has for others', async (t) => {
  const digest = digestOf(Buffer.from('secret'))
  const failure = new Error('the upstream sent other bytes')
  let opened = 0
  const context = {
    metadata: { findBlob: async () => undefined, check: async () => undefined },
    mirrors: { takeFill: () => Promise.reject(failure) },
    blobs: {
      openUpload: async () => undefined,
      open: async () => {
        opened++
        return { copyTo: async () => undefined, close: async () => undefined }
      },
    },
    newHolder: () => 'worker-1:1',
  }
  const task = { id: 'fill-1', mirror: 'open.test', repository: parseRepositoryName('open.test/a'), digest }
  const fill = new Fill(task as FillTask, context as unknown as FillContext)
  await t.rejects(fill.openBytes(), failure)
  t.equal(opened, 0)
})
