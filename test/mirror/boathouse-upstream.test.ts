import t from 'tap'
import { parseDigest } from '../../src/oci/digest.js'
import { parseRepositoryName, parseTag } from '../../src/oci/reference.js'
import { as, basic, password, startRegistry } from '../auth/fixture.js'
import { image, OCI_MANIFEST, push, randomBlob, type Server, startServer } from '../harness.js'
import { clientOf, drain, failureOf } from './fixture.js'

async function fill(server: Server, name: string) {
  const layer = randomBlob(400_000)
  const pushed = image({ layers: [layer] })
  for (const tag of ['v1', 'v2', 'v3']) await push(server, name, tag, pushed)
  const subject = { mediaType: OCI_MANIFEST, digest: pushed.digest, size: pushed.bytes.length }
  const signature = image({ layers: [], extra: { artifactType: 'application/vnd.example', subject } })
  await push(server, name, signature.digest, signature)
  return { pushed, layer, signature }
}

for (const auth of ['open', 'token'] as const) {
  t.test(`another Boathouse as upstream: ${auth}`, async (t) => {
    const registry = auth === 'token' ? await startRegistry(t) : undefined
    await registry?.addUser('root', { admin: true })
    const server = registry?.server ?? (await startServer(t))
    const name = parseRepositoryName('team/app')
    const { pushed, layer, signature } = await fill(
      auth === 'token' ? as(server, basic('root')) : server,
      name,
    )
    const url = new URL(server.url)
    const credentials = auth === 'token' ? async () => ({ username: 'root', password }) : undefined
    const client = clientOf(t, url, { credentials })
    const digest = parseDigest(pushed.digest)
    t.strictSame(await client.headManifest(name, parseTag('v2')), { digest })
    const manifest = await client.getManifest(name, parseTag('v1'))
    t.ok(Buffer.from(manifest.bytes).equals(pushed.bytes))
    t.equal(await client.headBlob(name, parseDigest(layer.digest)), 400_000)
    const blob = await client.openBlob(name, parseDigest(layer.digest), 399_000)
    t.ok((await drain(blob)).equals(layer.bytes.subarray(399_000)))
    t.strictSame(await client.listTags(name, 'v1', 1), { names: ['v2'], more: true })
    t.match(await client.listReferrers(name, digest), [{ digest: signature.digest, artifactType: /example/ }])
    t.equal((await failureOf(client.getManifest(name, parseTag('gone')))).failure, 'not-found')
    if (auth === 'open') return
    const stranger = clientOf(t, url)
    t.equal((await failureOf(stranger.getManifest(name, parseTag('v1')))).failure, 'denied')
  })
}
