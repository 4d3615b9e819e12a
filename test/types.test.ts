import t from 'tap'
import { commandsOn, did } from './commands.js'
import {
  artifact,
  DOCKER_LIST,
  DOCKER_MANIFEST,
  image,
  isError,
  type Manifest,
  manifestOf,
  newRepository,
  OCI_INDEX,
  OCI_MANIFEST,
  push,
  putManifest,
  type Server,
  sha512,
  startServer,
} from './harness.js'
import { startFakeUpstream } from './mirror/fake-upstream.js'
import { mirrorOf } from './mirror/pair.js'

/*
 * S90: bytes that do not say their type themselves can be pushed under several. What a tag that must not move, or a
 * referrer, depends on keeps the type of its first push.
 */

const upstream = await startFakeUpstream(t)
const server = await startServer(t, {
  config: {
    tags: { immutable: ['**:v*'] },
    mirrors: [mirrorOf(upstream, { bareNames: false, freshness: '0s' })],
  },
})

/** The same manifest without its mediaType: its type is what the Content-Type says. */
function untyped(manifest: Manifest, mediaType = manifest.mediaType): Manifest {
  const { mediaType: _, ...body } = JSON.parse(manifest.bytes.toString()) as Record<string, unknown>
  return manifestOf(body, mediaType, manifest.parts)
}

const as = (manifest: Manifest, mediaType: string): Manifest => ({ ...manifest, mediaType })
const typeOf = async (server: Server, repository: string, reference: string) =>
  (await server.request('GET', `/v2/${repository}/manifests/${reference}`)).headers['content-type']
const referrersOf = async (repository: string, digest: string) =>
  (await server.request('GET', `/v2/${repository}/referrers/${digest}`)).json<{
    manifests: { digest: string }[]
  }>().manifests

t.test('S90: the type of an immutable tag stays, by whatever name its bytes come again', async (t) => {
  const repository = newRepository()
  const one = untyped(image())
  await push(server, repository, 'v1', one)
  const other = as(one, DOCKER_MANIFEST)
  for (const reference of ['v1', 'v2', 'latest', one.digest]) {
    const reply = await putManifest(server, repository, reference, other)
    isError(t, reply, 403, 'DENIED', reference)
    t.match(
      reply.text,
      new RegExp(`here as ${OCI_MANIFEST.replaceAll('+', '\\+')}.*immutable tag v1.*Content-Type`),
    )
  }
  const more = await server.request('PUT', `/v2/${repository}/manifests/${one.digest}?tag=latest`, {
    headers: { 'Content-Type': DOCKER_MANIFEST },
    body: one.bytes,
  })
  t.equal(more.status, 403)
  t.equal(await typeOf(server, repository, 'v1'), OCI_MANIFEST)
  for (const reference of ['v1', 'v2', one.digest]) {
    t.equal((await putManifest(server, repository, reference, one)).status, 201, 'the same push again')
  }
  const long = await server.request('PUT', `/v2/${repository}/manifests/${sha512(one.bytes)}`, {
    headers: { 'Content-Type': DOCKER_MANIFEST },
    body: one.bytes,
  })
  t.equal(long.status, 201, 'another digest is another manifest')
  t.equal(await typeOf(server, repository, one.digest), OCI_MANIFEST)
  const elsewhere = newRepository()
  t.equal((await push(server, elsewhere, 'v1', other)).status, 201, 'another repository has its own')
})

t.test('S90: what an immutable index lists keeps its type, and so does the index', async (t) => {
  const repository = newRepository()
  const part = untyped(image())
  await push(server, repository, part.digest, part)
  const { digest, size } = part
  const body = { schemaVersion: 2, manifests: [{ mediaType: OCI_MANIFEST, digest, size }] }
  const list = manifestOf(body, OCI_INDEX)
  t.equal((await putManifest(server, repository, 'v1', list)).status, 201)
  isError(t, await putManifest(server, repository, digest, as(part, DOCKER_MANIFEST)), 403, 'DENIED')
  isError(t, await putManifest(server, repository, 'v1', as(list, DOCKER_LIST)), 403, 'DENIED')
  t.equal(await typeOf(server, repository, digest), OCI_MANIFEST)
  t.equal(await typeOf(server, repository, 'v1'), OCI_INDEX)
})

t.test('S90: a signature stays a referrer, and what it signs what it signed, deleted or not', async (t) => {
  const repository = newRepository()
  const subject = untyped(image())
  await push(server, repository, 'latest', subject)
  const about = { mediaType: OCI_MANIFEST, digest: subject.digest, size: subject.size }
  const signature = untyped(artifact({ artifactType: 'application/x-signature', subject: about }))
  await push(server, repository, signature.digest, signature)
  for (const one of [signature, subject]) {
    const reply = await putManifest(server, repository, one.digest, as(one, DOCKER_MANIFEST))
    isError(t, reply, 403, 'DENIED')
    t.match(reply.text, /a signature or another referrer depends on/)
    t.equal((await putManifest(server, repository, one.digest, one)).status, 201, 'the same push again')
  }
  t.equal((await referrersOf(repository, subject.digest)).length, 1)

  t.equal((await server.request('DELETE', `/v2/${repository}/manifests/${signature.digest}`)).status, 202)
  isError(t, await putManifest(server, repository, 'mine', as(signature, DOCKER_MANIFEST)), 403, 'DENIED')
  t.equal((await server.request('DELETE', `/v2/${repository}/manifests/${subject.digest}`)).status, 202)
  await did(t, commandsOn(server.data)(`tag restore ${repository}:latest`))
  t.equal((await referrersOf(repository, subject.digest)).length, 1, 'a restore brings it back as it was')
})

t.test('S90: where nothing depends on it, a wrong type is put right by a push', async (t) => {
  const repository = newRepository()
  const one = untyped(image())
  await push(server, repository, 'latest', as(one, DOCKER_MANIFEST))
  t.equal((await putManifest(server, repository, 'latest', one)).status, 201)
  t.equal(await typeOf(server, repository, 'latest'), OCI_MANIFEST)
  await push(server, repository, 'v1', one)
  isError(t, await putManifest(server, repository, 'v1', as(one, DOCKER_MANIFEST)), 403, 'DENIED')
})

t.test('S90: a mirror keeps the type that an immutable tag came with', async (t) => {
  const bytes = untyped(image()).bytes
  upstream.addManifest('team/app', 'v1', bytes, OCI_MANIFEST)
  t.equal(await typeOf(server, 'docker.io/team/app', 'v1'), OCI_MANIFEST)
  upstream.addManifest('team/app', 'next', bytes, DOCKER_MANIFEST)
  t.equal(await typeOf(server, 'docker.io/team/app', 'next'), OCI_MANIFEST, 'and serves it')
  t.equal(await typeOf(server, 'docker.io/team/app', 'v1'), OCI_MANIFEST)
})
