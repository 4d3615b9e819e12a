import { existsSync } from 'node:fs'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { commandsOn, did, refused } from './commands.js'
import {
  artifact,
  type Content,
  descriptor,
  eventually,
  image,
  index,
  isError,
  type Manifest,
  push,
  pushBlobs,
  putManifest,
  randomBlob,
  type Server,
  startServer,
  tagsOf,
} from './harness.js'

t.setTimeout(240_000)

const repository = 'team/app'

function isStored(server: Server, { digest }: { digest: string }): boolean {
  const [algorithm = '', hex = ''] = digest.split(':')
  return existsSync(join(server.data, 'blobs', algorithm, hex.slice(0, 2), hex))
}

/** Collects nothing: what is pushed here may take its time. */
function resting(t: Test, undo: string, more: Record<string, unknown> = {}): Promise<Server> {
  return startServer(t, { config: { gc: { interval: '24d' }, tags: { undo }, ...more } })
}

/** Collects without any grace, but for what can be restored. */
function collecting(
  t: Test,
  undo: string,
  more: Record<string, unknown> = {},
  data?: string,
): Promise<Server> {
  const { tags = {}, ...rest } = more
  const gc = { interval: '30ms', grace: '50ms', untagged: '50ms' }
  const config = { gc, tags: { undo, ...(tags as object) }, ...rest }
  return startServer(t, { config, ...(data === undefined ? {} : { data }) })
}

/** Waits for two collections that began after now, by garbage that is made one after the other. */
async function untilCollected(server: Server): Promise<void> {
  for (let round = 0; round < 2; round++) {
    const witness = randomBlob()
    await pushBlobs(server, 'witness/app', witness)
    await eventually('the witness goes', () => !isStored(server, witness), 20_000)
  }
}

async function pulls(t: Test, server: Server, reference: string, manifest: Manifest): Promise<void> {
  const reply = await server.request('GET', `/v2/${repository}/manifests/${reference}`)
  t.ok(reply.status === 200 && reply.body.equals(manifest.bytes), `${reference} is there`)
  for (const { digest, bytes } of manifest.parts) {
    const got = await server.request('GET', `/v2/${repository}/blobs/${digest}`)
    t.ok(got.status === 200 && got.body.equals(bytes), `with ${digest.slice(0, 15)}`)
  }
}

async function remove(t: Test, server: Server, kind: 'manifests' | 'blobs', reference: string) {
  const reply = await server.request('DELETE', `/v2/${repository}/${kind}/${reference}`)
  t.equal(reply.status, 202, `DELETE ${kind}/${reference.slice(0, 20)}`)
}

t.test(
  'an image deleted by its digest is gone for all, stays on the disk, and comes back whole',
  async (t) => {
    const first = await resting(t, '1h', { workers: 2 })
    const run = commandsOn(first.data)
    const [child, other] = [image(), image()] as const
    await push(first, repository, child.digest, child)
    await push(first, repository, other.digest, other)
    const multi = index([child, other])
    await push(first, repository, 'v1', multi)
    await putManifest(first, repository, 'also', multi)
    const signature = artifact({ subject: descriptor(child) })
    await push(first, repository, signature.digest, signature)
    // As tools do it: what is listed first, and what refers to it, then the index; then every blob.
    for (const { digest } of [signature, child, other, multi]) await remove(t, first, 'manifests', digest)
    const parts = [child, other, signature].flatMap((one) => one.parts)
    for (const { digest } of child.parts) await remove(t, first, 'blobs', digest)
    for (const manifest of [multi, child, signature]) {
      const gone = await first.request('GET', `/v2/${repository}/manifests/${manifest.digest}`)
      isError(t, gone, 404, 'NAME_UNKNOWN')
    }
    t.equal(await tagsOf(first, repository), undefined, 'the repository is empty')
    const blob = `/v2/${repository}/blobs/${child.parts[0]?.digest}`
    t.equal((await first.request('HEAD', blob)).status, 404, 'a deleted blob is gone as well')
    isError(t, await putManifest(first, repository, 'v2', child), 400, 'MANIFEST_BLOB_UNKNOWN')
    await first.stop()
    const server = await collecting(t, '1h', { workers: 2 }, first.data)
    await untilCollected(server)
    t.ok(
      parts.every((part) => isStored(server, part)),
      'every byte is there',
    )
    const { stdout } = await did(t, run(`tag restore ${repository}:v1`))
    t.match(stdout, `${repository}:v1 points at ${multi.digest}. Deleted manifests that are back: 4.`)
    await pulls(t, server, 'v1', multi)
    for (const one of [child, other, signature]) await pulls(t, server, one.digest, one)
    const referrers = await server.request('GET', `/v2/${repository}/referrers/${child.digest}`)
    t.match(referrers.json(), { manifests: [{ digest: signature.digest }] })
    t.strictSame(await tagsOf(server, repository), ['v1'], 'the other tag is another history')
    await untilCollected(server)
    await pulls(t, server, 'v1', multi)
    await pulls(t, server, child.digest, child)
  },
)

t.test('a tag that moved or was deleted keeps what it pointed at, then that goes (R03, R13)', async (t) => {
  const pushed = await resting(t, '1h')
  const run = commandsOn(pushed.data)
  const [first, second, listed] = [image(), image(), image()] as const
  await push(pushed, repository, listed.digest, listed)
  const multi = index([listed])
  await push(pushed, repository, 'multi', multi)
  await push(pushed, repository, 'v1', first)
  await push(pushed, repository, 'other', first)
  await push(pushed, repository, 'v1', second)
  await remove(t, pushed, 'manifests', 'v1')
  await remove(t, pushed, 'manifests', 'multi')
  await remove(t, pushed, 'manifests', 'other')
  await pushed.stop()
  const server = await collecting(t, '1h', {}, pushed.data)
  await untilCollected(server)
  for (const one of [first, second, listed]) await pulls(t, server, one.digest, one)
  await server.stop()
  const later = await collecting(t, '1s', {}, server.data)
  const gone = [...first.parts, ...second.parts, ...listed.parts]
  await eventually('all go when the time is over', () => !gone.some((part) => isStored(later, part)), 30_000)
  await refused(t, run(`tag restore ${repository}:v1`), 1, /is not there any more/)
  const { stdout } = await did(t, run(`tag history ${repository}:v1`))
  t.match(stdout, /delete +- +none, was sha256:\w+ +no\n/, 'the history is still told')
})

t.test(
  'deleted manifests: gc --explain says what they were, and until when they can be restored',
  async (t) => {
    const server = await startServer(t)
    const run = commandsOn(server.data)
    const [old, moved, deleted, listed] = [image(), image(), image(), image()] as const
    await push(server, repository, 'v1', old)
    await push(server, repository, 'v1', moved)
    await push(server, repository, 'v2', deleted)
    await push(server, repository, listed.digest, listed)
    const multi = index([listed])
    await push(server, repository, 'multi', multi)
    await remove(t, server, 'manifests', deleted.digest)
    await remove(t, server, 'manifests', multi.digest)
    const time = '20\\d\\d-\\d\\d-\\d\\dT\\d\\d:\\d\\d:\\d\\dZ'
    const explain = async (digest = '', untagged = '1s') =>
      (await run(`gc --explain ${digest}`, '', { env: { BOATHOUSE_GC_UNTAGGED: untagged } })).stdout
    const until = `can be restored until ${time}`
    const lines: [string | undefined, string][] = [
      [old.digest, `manifest of team/app: kept until ${time}: was team/app:v1 until ${time}, ${until}`],
      [
        old.parts[0]?.digest,
        `blob of team/app: kept: named by ${old.digest}: was team/app:v1 until ${time}, ${until}`,
      ],
      [
        deleted.digest,
        `deleted manifest of team/app: kept until ${time}: was team/app:v2 until it was deleted at ${time}, ${until}`,
      ],
      [
        deleted.parts[0]?.digest,
        `kept until ${time}: named by ${deleted.digest}, which was team/app:v2 until`,
      ],
      [
        listed.digest,
        `kept until ${time}: part of ${multi.digest}, which was team/app:multi until it was deleted`,
      ],
    ]
    for (const [digest, line] of lines) t.match(await explain(digest), new RegExp(line))
    t.match(await explain(moved.digest), /kept: tagged team\/app:v1/)
    const unset = await run(`gc --explain ${old.digest}`)
    t.match(unset.stdout, /kept: was team\/app:v1 until .*; no tag leads to it, but gc.untagged is unset/)
  },
)

t.test('the commands: list, history with who, restoring to an entry or a digest, refusals', async (t) => {
  const server = await startServer(t, { config: { tags: { immutable: ['**:stay*'] } } })
  const run = commandsOn(server.data)
  const images = [image(), image(), image()] as const
  const [first, second, third] = images
  for (const one of images) await push(server, repository, 'v1', one)
  await push(server, repository, 'stay', first)
  const name = `${repository}:v1`
  const told = JSON.parse((await did(t, run(`tag history ${name} --json`))).stdout)
  t.match(told, [
    { how: 'push', digest: third.digest, previous: second.digest, by: null, restorable: true, until: null },
    { how: 'push', digest: second.digest },
    { how: 'push', digest: first.digest, previous: null },
  ])
  await did(t, run(`tag restore ${name}`))
  await pulls(t, server, 'v1', second)
  await did(t, run(`tag restore ${name} --to ${told[2].entry}`))
  await pulls(t, server, 'v1', first)
  await did(t, run(`tag restore ${name} --to ${third.digest}`))
  await pulls(t, server, 'v1', third)
  t.match((await did(t, run(`tag restore ${name} --to ${third.digest}`))).stdout, /already/)
  await did(t, run(`tag restore ${repository}:rescued --to ${second.digest}`))
  await pulls(t, server, 'rescued', second)
  const table = (await did(t, run(`tag history ${repository} --limit 3`))).stdout
  t.match(
    table,
    /^ENTRY +TIME +TAG +CHANGE +BY +DIGEST +RESTORABLE\n\d+ +20\S+ +rescued +restore +\S+ +sha256:/,
  )
  t.equal(table.trim().split('\n').length, 4)
  t.match(
    (await did(t, run(`tag list ${repository}`))).stdout,
    /^TAG +DIGEST +PUSHED +BY +PULLED\nrescued +sha256:/,
  )
  t.match(JSON.parse((await did(t, run(`tag list ${repository} --json`))).stdout)[2], {
    tag: 'v1',
    digest: third.digest,
  })
  const audited = await run(`tag restore ${name} --log json`)
  t.match(JSON.parse(audited.stderr), { audit: 'tag restored', repository, tag: 'v1', digest: first.digest })
  const env = { BOATHOUSE_TAGS_IMMUTABLE: '**:v*' }
  await refused(t, run(`tag restore ${name}`, '', { env }), 1, /is immutable/)
  await refused(t, run(`tag restore ${repository}:stay`), 1, /nothing was before it/)
  await refused(t, run(`tag restore ${repository}:none`), 1, /Nothing is remembered/)
  await refused(t, run(`tag restore ${name} --to 999999`), 1, /no such entry/)
  await refused(t, run(`tag restore ${name} --to latest`), 2, /after --to/)
  await refused(t, run(`tag restore ${repository}`), 2, /Name a tag as well/)
  await refused(t, run('tag restore HOST:5000/team:v1'), 2, /without the registry/)
  await refused(t, run(`tag history ${name} --limit 0`), 2, /after --limit/)
  t.equal((await run(`tag history ${repository}:none`)).code, 1)
})

t.test('undo can be switched off, and what a setting shortens goes at once', async (t) => {
  const server = await startServer(t, {
    config: { gc: { interval: '24d', grace: '50ms' }, tags: { undo: '1h' } },
  })
  const run = commandsOn(server.data)
  const deleted = image()
  await push(server, repository, 'v1', deleted)
  await remove(t, server, 'manifests', deleted.digest)
  const env = { BOATHOUSE_GC_GRACE: '10ms', BOATHOUSE_TAGS_UNDO: '1h' }
  await did(t, run('gc', '', { env }))
  t.ok(isStored(server, deleted.parts[0] as Content), 'it stays for tags.undo')
  const off = { ...env, BOATHOUSE_TAGS_UNDO: '0s' }
  t.match((await did(t, run('gc --dry-run', '', { env: off }))).stdout, /Would free 3 blobs/)
  t.match((await did(t, run('gc', '', { env: off }))).stdout, /Freed 3 blobs/)
  t.notOk(isStored(server, deleted.parts[0] as Content))
  await refused(t, run(`tag restore ${repository}:v1`), 1, /is not there any more/)
})
