import { existsSync, mkdirSync, readdirSync, rmSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import t, { type Test } from 'tap'
import { type Run, runCommand } from './commands.js'
import {
  artifact,
  blob,
  type Content,
  eventually,
  image,
  index,
  isError,
  type Manifest,
  openUpload,
  pause,
  push,
  pushBlobs,
  putManifest,
  randomBlob,
  type Server,
  startServer,
  withQuery,
} from './harness.js'

t.setTimeout(240_000)

const grace = 1000

function fileOf(server: { data: string }, { digest }: { digest: string }): string {
  const [algorithm = '', hex = ''] = digest.split(':')
  return join(server.data, 'blobs', algorithm, hex.slice(0, 2), hex)
}

function isStored(server: { data: string }, content: Content): boolean {
  return existsSync(fileOf(server, content))
}

/** The value of one of the registry's metrics. */
async function metric(server: Server, name: string): Promise<number> {
  const { text } = await server.request('GET', '/metrics')
  return Number(new RegExp(`^boathouse_${name} (\\d+)$`, 'm').exec(text)?.[1])
}

function isGone(server: Server, ...contents: Content[]): Promise<boolean> {
  return eventually(
    'bytes are removed',
    () => contents.every((content) => !isStored(server, content)),
    20_000,
  )
}

/** Waits until something that is garbage from now on has gone: older garbage has gone by then, too. */
async function untilCollected(server: Server): Promise<void> {
  const witness = randomBlob()
  await pushBlobs(server, 'witness/app', witness)
  await isGone(server, witness)
}

function collecting(
  t: Test,
  gc: Record<string, string> = {},
  more: Record<string, unknown> = {},
): Promise<Server> {
  return startServer(t, { config: { gc: { interval: '30ms', grace: `${grace}ms`, ...gc }, ...more } })
}

/** A server that collects when it is told to. */
function resting(t: Test, gc: Record<string, string> = {}, data?: string): Promise<Server> {
  const config = { gc: { interval: '24d', grace: '50ms', ...gc } }
  return startServer(t, { config, ...(data === undefined ? {} : { data }) })
}

function command(server: { data: string }, env: Record<string, string>, ...words: string[]): Promise<Run> {
  return runCommand(server.data, ['gc', ...words], '', {
    env: { BOATHOUSE_GC_GRACE: '50ms', ...env },
  })
}

async function head(server: Server, path: string): Promise<number> {
  return (await server.request('HEAD', path)).status
}

async function pulls(t: Test, server: Server, repository: string, reference: string, manifest: Manifest) {
  const reply = await server.request('GET', `/v2/${repository}/manifests/${reference}`)
  t.equal(reply.status, 200, `${repository}:${reference} is there`)
  for (const part of manifest.parts) {
    const got = await server.request('GET', `/v2/${repository}/blobs/${part.digest}`)
    t.ok(got.status === 200 && got.body.equals(part.bytes), `with ${part.digest.slice(0, 15)}`)
  }
}

t.test('half an image goes after the grace, not before, and can be pushed again (R07, R08)', async (t) => {
  const server = await collecting(t, {}, { workers: 2 })
  const half = image()
  const begin = performance.now()
  await pushBlobs(server, 'half/app', ...half.parts)
  await isGone(server, ...half.parts)
  t.ok(performance.now() - begin >= grace, 'it stayed for the grace')
  for (const part of half.parts) t.equal(await head(server, `/v2/half/app/blobs/${part.digest}`), 404)
  isError(t, await putManifest(server, 'half/app', 'v1', half), 400, 'MANIFEST_BLOB_UNKNOWN')
  const mounted = await server.request(
    'POST',
    `/v2/other/app/blobs/uploads/?mount=${half.parts[0]?.digest}&from=half/app`,
  )
  t.equal(mounted.status, 202, 'what is gone cannot be mounted')
  await push(server, 'half/app', 'v1', half)
  await untilCollected(server)
  await pulls(t, server, 'half/app', 'v1', half)
})

t.test('what something needs stays (R01, R03, R13)', async (t) => {
  const server = await collecting(t)
  const tagged = image()
  await push(server, 'keep/app', 'v1', tagged)
  const untagged = image()
  await push(server, 'keep/app', untagged.digest, untagged)
  const child = image()
  await push(server, 'keep/app', child.digest, child)
  const inner = index([child])
  await push(server, 'keep/app', inner.digest, inner)
  const outer = index([inner])
  await push(server, 'keep/app', 'multi', outer)
  const signature = artifact({
    subject: { mediaType: tagged.mediaType, digest: tagged.digest, size: tagged.size },
  })
  await push(server, 'keep/app', signature.digest, signature)
  const shared = image()
  await push(server, 'keep/shared', 'v1', shared)
  await push(server, 'drop/shared', 'v1', shared)
  const dropped = image()
  await push(server, 'keep/app', 'dropped', dropped)
  const retagged = image()
  await push(server, 'keep/app', 'old', retagged)
  await putManifest(server, 'keep/app', 'new', retagged)
  t.equal((await server.request('DELETE', '/v2/keep/app/manifests/old')).status, 202)
  t.equal((await server.request('DELETE', `/v2/keep/app/manifests/${dropped.digest}`)).status, 202)
  t.equal((await server.request('DELETE', `/v2/drop/shared/manifests/${shared.digest}`)).status, 202)
  await isGone(server, ...dropped.parts)
  await untilCollected(server)
  await pulls(t, server, 'keep/app', 'v1', tagged)
  await pulls(t, server, 'keep/app', untagged.digest, untagged)
  await pulls(t, server, 'keep/app', child.digest, child)
  await pulls(t, server, 'keep/app', 'multi', outer)
  await pulls(t, server, 'keep/app', signature.digest, signature)
  await pulls(t, server, 'keep/shared', 'v1', shared)
  await pulls(t, server, 'keep/app', 'new', retagged)
  for (const { digest } of shared.parts) t.equal(await head(server, `/v2/drop/shared/blobs/${digest}`), 404)
})

t.test('HEAD, GET, mount and a repeated push renew a lease; without them it ends (R06, R07)', async (t) => {
  const grace = 4000
  const server = await collecting(t, { grace: `${grace}ms` }, { workers: 2 })
  const [looked, read, mounted, pushed] = [randomBlob(), randomBlob(), randomBlob(), randomBlob()] as const
  await pushBlobs(server, 'lease/app', looked, read, mounted, pushed)
  const faults: string[] = []
  const use = async (method: string, path: string, status: number) => {
    const reply = await server.request(method, path)
    if (reply.status !== status) faults.push(`${method} ${path}: ${reply.status}`)
  }
  const until = performance.now() + 3 * grace
  while (performance.now() < until) {
    await use('HEAD', `/v2/lease/app/blobs/${looked.digest}`, 200)
    await use('GET', `/v2/lease/app/blobs/${read.digest}`, 200)
    await use('POST', `/v2/lease/app/blobs/uploads/?mount=${mounted.digest}&from=lease/app`, 201)
    await pushBlobs(server, 'lease/app', pushed)
    await pause(grace / 4)
  }
  t.strictSame(faults, [], 'each was there all the while')
  const parts = [looked, read, mounted, pushed]
  const built = image({ config: looked, layers: [read, mounted, pushed] })
  t.equal((await putManifest(server, 'lease/app', 'v1', built)).status, 201, 'and a manifest can rely on it')
  await server.request('DELETE', `/v2/lease/app/manifests/${built.digest}`)
  await isGone(server, ...parts)
})

t.test('the lease is from the last HEAD: a manifest within the grace is never refused (R07)', async (t) => {
  const server = await collecting(t, { grace: '5s' })
  const slow = image()
  await pushBlobs(server, 'slow/app', ...slow.parts)
  await pause(3000)
  for (const { digest } of slow.parts) t.equal(await head(server, `/v2/slow/app/blobs/${digest}`), 200)
  await pause(3000) // from the push on it is longer than a lease lasts
  t.equal((await putManifest(server, 'slow/app', 'v1', slow)).status, 201)
  await untilCollected(server)
  await pulls(t, server, 'slow/app', 'v1', slow)
})

t.test('untagged manifests go by policy, with what leads to them, and only they (R03, R24)', async (t) => {
  const grace = 4000
  const server = await collecting(
    t,
    { grace: `${grace}ms`, untagged: `${grace}ms` },
    { tags: { immutable: ['stay/**:v*'] } },
  )
  const repository = 'stay/app'
  const [kept, loose, moved, replaced, child, lonely] = [
    image(),
    image(),
    image(),
    image(),
    image(),
    image(),
  ] as const
  await push(server, repository, 'v1', kept)
  await push(server, repository, loose.digest, loose)
  await push(server, repository, 'latest', replaced)
  await push(server, repository, 'latest', moved)
  await push(server, repository, child.digest, child)
  const multi = index([child])
  await push(server, repository, 'v-multi', multi)
  await push(server, repository, lonely.digest, lonely)
  const garbage = index([child, lonely])
  await push(server, repository, garbage.digest, garbage)
  const subject = { mediaType: kept.mediaType, digest: kept.digest, size: kept.size }
  const signed = artifact({ subject })
  await push(server, repository, signed.digest, signed)
  const chained = artifact({
    subject: { mediaType: signed.mediaType, digest: signed.digest, size: signed.size },
  })
  await push(server, repository, chained.digest, chained)
  const stray = artifact({ subject: { mediaType: loose.mediaType, digest: loose.digest, size: loose.size } })
  await push(server, repository, stray.digest, stray)
  const path = (manifest: Content) => `/v2/${repository}/manifests/${manifest.digest}`
  const watched = image()
  await push(server, repository, watched.digest, watched)
  const until = performance.now() + 2.5 * grace
  while (performance.now() < until) {
    t.equal(await head(server, path(watched)), 200, 'one that is looked at stays')
    await pause(grace / 4)
  }
  const lost = [...loose.parts, ...replaced.parts, ...lonely.parts, ...stray.parts.slice(1)]
  await isGone(server, ...lost)
  for (const manifest of [loose, replaced, garbage, lonely, stray])
    t.equal(await head(server, path(manifest)), 404)
  await pulls(t, server, repository, 'v1', kept)
  await pulls(t, server, repository, 'latest', moved)
  await pulls(t, server, repository, child.digest, child)
  await pulls(t, server, repository, 'v-multi', multi)
  await pulls(t, server, repository, signed.digest, signed)
  await pulls(t, server, repository, chained.digest, chained)
})

t.test('a pushed blob that was condemned meanwhile is stored anew, again and again (R08)', async (t) => {
  const server = await collecting(t, { grace: '10ms', interval: '10ms' }, { workers: 2 })
  const content = randomBlob(2000)
  for (let round = 0; round < 40; round++) {
    await pushBlobs(server, `again/r${round % 3}`, content)
    const uploads = Array.from({ length: 4 }, (_, at) => pushBlobs(server, `again/r${at}`, content))
    await Promise.all(uploads)
  }
  const last = image({ layers: [content] })
  await eventually(
    'a manifest gets in between',
    async () => {
      await pushBlobs(server, 'again/r0', ...last.parts)
      return (await putManifest(server, 'again/r0', 'v1', last)).status === 201
    },
    20_000,
  )
  await pulls(t, server, 'again/r0', 'v1', last)
  t.strictSame(
    server.logs().filter(({ level }) => Number(level) >= 50),
    [],
    'and nothing went wrong',
  )
})

t.test(
  'a server that is killed while it collects leaves nothing that the next one does not finish',
  async (t) => {
    const first = await resting(t, { grace: '10ms' })
    const contents = Array.from({ length: 300 }, () => randomBlob(100))
    await pushBlobs(first, 'killed/app', ...contents)
    const stay = image()
    await push(first, 'killed/app', 'v1', stay)
    await first.stop()
    const { data } = first
    for (let round = 0; round < 6; round++) {
      const server = await startServer(t, { data, config: { gc: { interval: '10ms', grace: '10ms' } } })
      const left = contents.filter((content) => isStored(server, content)).length
      await eventually(
        'some go',
        () => contents.filter((content) => isStored(server, content)).length < left || left === 0,
      )
      await server.kill()
      await pause(round)
    }
    const server = await startServer(t, { data, config: { gc: { interval: '10ms', grace: '10ms' } } })
    await isGone(server, ...contents)
    await pulls(t, server, 'killed/app', 'v1', stay)
    await eventually('the rows go, too', async () => {
      const { text } = await server.request('GET', '/metrics')
      return /^boathouse_blobs 3$/m.test(text)
    })
  },
)

t.test(
  'files that the index does not know go, unless they are too many or older than it (R04)',
  async (t) => {
    const first = await resting(t)
    const stay = image()
    await push(first, 'odd/app', 'v1', stay)
    await first.stop()
    const strays = Array.from({ length: 3 }, () => randomBlob(100))
    const write = (content: Content) => {
      mkdirSync(dirname(fileOf(first, content)), { recursive: true })
      writeFileSync(fileOf(first, content), content.bytes)
    }
    strays.forEach(write)
    await pause(60)
    const second = await resting(t, {}, first.data)
    await isGone(second, ...strays)
    await pulls(t, second, 'odd/app', 'v1', stay)
    await second.stop()

    const many = Array.from({ length: 120 }, () => randomBlob(50))
    many.forEach(write)
    await pause(60)
    const third = await resting(t, {}, first.data)
    await eventually('a warning', () =>
      third.logs().some(({ level, files }) => level === 40 && files === 120),
    )
    t.ok(
      many.every((content) => isStored(third, content)),
      'too many stay',
    )
    await third.stop()

    for (const name of readdirSync(first.data)) {
      if (name.startsWith('boathouse.db')) rmSync(join(first.data, name))
    }
    for (const content of many.slice(5)) rmSync(fileOf(first, content))
    const fourth = await resting(t, {}, first.data)
    await eventually('a warning', () => fourth.logs().some(({ level, files }) => level === 40 && files === 8))
    t.ok(
      [...stay.parts, ...many.slice(0, 5)].every((content) => isStored(fourth, content)),
      'older ones stay',
    )
    const run = await command(fourth, {}, '--unknown')
    t.match(run, { code: 0, stdout: /Freed 8 blobs/ }, 'the command removes them when it is told to')
    t.notOk([...stay.parts, ...many].some((content) => isStored(fourth, content)))
  },
)

t.test('the command: dry run, collection, JSON, explanations, beside a server and without one', async (t) => {
  const server = await resting(t)
  const [kept, half] = [image(), randomBlob(5000)] as const
  await push(server, 'team/app', 'v1', kept)
  await pushBlobs(server, 'team/app', half)
  await pushBlobs(server, 'team/copy', half)
  await pause(60)
  const dry = await command(server, {}, '--dry-run')
  t.match(dry, {
    code: 0,
    stdout: /team\/app +0 +1 +4\.9 KiB\nteam\/copy +0 +1 +4\.9 KiB\nWould free 1 blobs, 4\.9 KiB\./,
  })
  t.ok(isStored(server, half), 'a dry run removes nothing')
  const why = await command(server, {}, '--explain', kept.parts[0]?.digest ?? '')
  t.match(why, {
    code: 0,
    stdout: /blob of team\/app: kept: named by sha256:\w+: tagged team\/app:v1, pushed just now/,
  })
  t.match(await command(server, {}, '--explain', half.digest), {
    stdout: /blob of team\/app: goes with the next collection: no manifest names it/,
  })
  t.match(await command(server, { BOATHOUSE_GC_GRACE: '24h' }, '--explain', half.digest), {
    stdout: /blob of team\/app: kept until 20\d\d-.*Z: no manifest names it; last used just now/,
  })
  t.match(await command(server, {}, '--explain', kept.digest), {
    stdout: /manifest of team\/app: kept: tagged team\/app:v1/,
  })
  t.match(await command(server, {}, '--explain', blob('never').digest), { code: 1, stdout: /does not know/ })
  t.match(await command(server, {}, '--explain', 'sha256:12'), { code: 2, stderr: /takes a digest/ })
  t.match(await command(server, {}, '--explain', half.digest, '--dry-run'), { code: 2 })
  const run = await command(server, {}, '--json')
  t.match(JSON.parse(run.stdout), {
    dryRun: false,
    blobs: 1,
    bytes: 5000,
    unknownLeft: 0,
    interrupted: false,
  })
  t.notOk(isStored(server, half), 'it is gone')
  t.equal(await head(server, `/v2/team/app/blobs/${half.digest}`), 404, 'for the running server as well')
  const { text } = await server.request('GET', '/metrics')
  t.match(text, /^boathouse_gc_blobs_total 1$/m)
  t.match(text, /^boathouse_gc_bytes_total 5000$/m)
  t.match(text, /^boathouse_gc_runs_total 2$/m)
  await server.request('DELETE', `/v2/team/app/manifests/v1`)
  await server.stop()
  t.match(await command(server, {}), { code: 0, stdout: 'Freed 0 blobs, 0 B.\n' }, 'untagged manifests stay')
  const policy = { BOATHOUSE_GC_UNTAGGED: '10ms' }
  t.match(await command(server, policy, '--dry-run'), { stdout: /team\/app +1 +3 .*\nWould free 3 blobs/ })
  t.match(await command(server, policy), { code: 0, stdout: /team\/app +1 +3 .*\nFreed 3 blobs/ })
  t.notOk(kept.parts.some((part) => isStored(server, part)))
})

t.test('two collectors at once: the server and commands, while clients push', async (t) => {
  const server = await collecting(t, { interval: '10ms', grace: '3s' }, { workers: 2 })
  const env = { BOATHOUSE_GC_GRACE: '3s' }
  let isOver = false
  const commands = (async () => {
    while (!isOver) {
      const { code, stderr } = await command(server, env)
      if (code !== 0 && !/already/.test(stderr)) t.fail(stderr)
    }
  })()
  const images: Manifest[] = []
  const until = performance.now() + 8000
  for (let round = 0; round < 25 || performance.now() < until; round++) {
    const some = [image(), image()] as const
    await push(server, 'two/app', `t${round}`, some[0])
    await pushBlobs(server, 'two/app', ...some[1].parts)
    images.push(some[0])
  }
  t.ok((await metric(server, 'gc_blobs_total')) > 0, 'meanwhile something was collected')
  isOver = true
  await commands
  await untilCollected(server)
  for (const [round, one] of images.entries()) await pulls(t, server, 'two/app', `t${round}`, one)
  const files = readdirSync(join(server.data, 'blobs/sha256'), { recursive: true, encoding: 'utf8' })
  t.equal(files.filter((name) => name.includes('/')).length, 3 * images.length, 'and nothing else is left')
})

t.test('an upload that is about to finish keeps the blob that it will be (R06)', async (t) => {
  const server = await collecting(t, { grace: '2s', interval: '10ms' })
  await eventually('it collects', async () => (await metric(server, 'gc_runs_total')) > 0, 20_000)
  const content = randomBlob(400_000)
  const location = await openUpload(server, 'finish/app')
  await server.request('PATCH', location, { body: content.bytes })
  for (let round = 0; round < 10; round++) await pushBlobs(server, 'finish/other', content)
  const reply = await server.request('PUT', withQuery(location, `digest=${content.digest}`))
  t.equal(reply.status, 201)
  const got = await server.request('GET', `/v2/finish/app/blobs/${content.digest}`)
  t.ok(got.body.equals(content.bytes))
})
