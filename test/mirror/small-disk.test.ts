import { execFileSync } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { lstatSync, rmSync, statfsSync } from 'node:fs'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { pool } from '../auth/fixture.js'
import { runCommand } from '../commands.js'
import {
  eventually,
  filesBelow,
  image,
  pause,
  push,
  randomBlob,
  type Server,
  scratchDir,
  startServer,
} from '../harness.js'
import { fillUp } from '../stores/processes.js'
import { digest, type FakeUpstream, startFakeUpstream } from './fake-upstream.js'
import { mirrorOf } from './pair.js'

/*
 * Mirrors on a disk that is really small: its free space is what the system says, and it ends.
 */

const mebibyte = 1024 * 1024
const diskSize = 64
const floor = 24 * mebibyte
const largest = 1_500_000

const folder = scratchDir(t)
let isMounted = false
try {
  execFileSync('mount', ['-t', 'tmpfs', '-o', `size=${diskSize}m`, 'boathouse-test', folder], {
    stdio: 'ignore',
  })
  isMounted = true
} catch {
  // Only root may; the tests are skipped then.
}
t.teardown(() => {
  if (isMounted) execFileSync('umount', ['-l', folder])
})
const skip = isMounted ? false : 'needs the right to mount'

const freeBytes = () => {
  const { bavail, bsize } = statfsSync(folder)
  return bavail * bsize
}

/** Bytes of the files that a mirror may be blamed for; one that goes meanwhile has none. */
function heldBytes(server: Server): number {
  const files = ['blobs', 'uploads'].flatMap((name) => {
    const path = join(server.data, name)
    return filesBelow(path).map((file) => join(path, file))
  })
  return files.reduce((sum, file) => sum + (lstatSync(file, { throwIfNoEntry: false })?.size ?? 0), 0)
}

/** The extremes while something goes on. */
async function watch(server: Server, work: () => Promise<unknown>) {
  let [leastFree, mostHeld] = [freeBytes(), 0]
  let isDone = false
  const look = async () => {
    while (!isDone) {
      leastFree = Math.min(leastFree, freeBytes())
      mostHeld = Math.max(mostHeld, heldBytes(server))
      await pause(5)
    }
  }
  const looking = look()
  try {
    await work()
  } finally {
    isDone = true
    await looking
  }
  return { leastFree, mostHeld }
}

/** Images of two layers each; every fourth shares its first layer with the one before. */
function addImages(upstream: FakeUpstream, count: number): { name: string; layers: Buffer[] }[] {
  let before = randomBytes(100_000)
  return Array.from({ length: count }, (_, n) => {
    const first = n % 4 === 3 ? before : randomBytes(50_000 + Math.floor(Math.random() * (largest - 50_000)))
    before = first
    const layers = [first, randomBytes(200_000)]
    upstream.addImage(`team/app${n}`, 'latest', layers)
    return { name: `team/app${n}`, layers }
  })
}

/** Pulls everything, several clients at once. @returns what was not served right */
async function pullAll(
  server: Server,
  images: readonly { name: string; layers: Buffer[] }[],
): Promise<string[]> {
  const faults = await pool(8, images, async ({ name, layers }) => {
    const wrong: string[] = []
    const manifest = await server.request('GET', `/v2/docker.io/${name}/manifests/latest`)
    if (manifest.status !== 200) wrong.push(`${name}: ${manifest.status} ${manifest.text}`)
    for (const layer of layers) {
      const reply = await server.request('GET', `/v2/docker.io/${name}/blobs/${digest(layer)}`)
      if (reply.status !== 200 || !reply.body.equals(layer))
        wrong.push(`${name}: ${reply.status} ${reply.text.slice(0, 200)}`)
    }
    return wrong
  })
  return faults.flat()
}

async function startSmall(
  t: Test,
  name: string,
  settings: Record<string, unknown>,
  config: Record<string, unknown>,
) {
  const upstream = await startFakeUpstream(t)
  const mirrors = [{ ...mirrorOf(upstream), ...settings }]
  const server = await startServer(t, {
    data: join(folder, name),
    config: { workers: 2, ...config, mirrors },
  })
  return { upstream, server }
}

/** What was pushed is there, byte for byte. */
async function stillThere(t: Test, server: Server, pushed: ReturnType<typeof image>): Promise<void> {
  for (const { digest, bytes } of pushed.parts) {
    const reply = await server.request('GET', `/v2/own/app/blobs/${digest}`)
    t.ok(reply.body.equals(bytes), 'what was pushed is untouched')
  }
  t.equal((await server.request('GET', '/v2/own/app/manifests/latest')).status, 200)
}

t.test('the floor of a small disk holds while 8 clients pull four times what fits', { skip }, async (t) => {
  const { upstream, server } = await startSmall(t, 'floor', {}, { disk: { floor: '24MiB' } })
  const pushed = image({ layers: [randomBlob(4_000_000)] })
  await push(server, 'own/app', 'latest', pushed)
  const images = addImages(upstream, 120)
  const total = images.flatMap(({ layers }) => layers).reduce((sum, { length }) => sum + length, 0)
  let faults: string[] = []
  const { leastFree } = await watch(server, async () => {
    faults = await pullAll(server, images)
  })
  t.strictSame(faults, [], 'no pull was broken by evictions')
  t.comment(`${total} bytes pulled through ${diskSize} MiB; least free: ${leastFree} of ${floor}`)
  t.ok(total > 2 * (diskSize * mebibyte - floor))
  t.ok(leastFree >= floor - largest, `never more than one blob below the floor: ${floor - leastFree}`)
  t.ok(leastFree < floor + 8 * mebibyte, 'and the space above it is used')
  await stillThere(t, server, pushed)
  t.equal(server.faults.length, 0)
  await server.stop()
  execFileSync('rm', ['-rf', server.data])
})

t.test('a budget holds beside what is pushed, however the mirror is pulled', { skip }, async (t) => {
  const budget = 8 * mebibyte
  const { upstream, server } = await startSmall(t, 'budget', { budget: '8MiB' }, { disk: { floor: '8MiB' } })
  const pushed = image({ layers: [randomBlob(2_000_000)] })
  await push(server, 'own/app', 'latest', pushed)
  const own = heldBytes(server)
  const images = addImages(upstream, 60)
  let faults: string[] = []
  const { mostHeld } = await watch(server, async () => {
    faults = await pullAll(server, images)
  })
  t.strictSame(faults, [])
  t.comment(`most held: ${mostHeld - own} of ${budget}`)
  t.ok(
    mostHeld - own <= budget + largest,
    `never more than one blob above the budget: ${mostHeld - own - budget}`,
  )
  t.ok(mostHeld - own > budget / 2, 'the budget is used')
  await stillThere(t, server, pushed)
  await eventually('it stays within the budget when nobody pulls', () => heldBytes(server) - own <= budget)
  await server.stop()
  execFileSync('rm', ['-rf', server.data])
})

t.test('what was fetched from an upstream makes room for what is pushed', { skip }, async (t) => {
  const { upstream, server } = await startSmall(t, 'room', {}, { disk: { floor: '8MiB', reserve: '0B' } })
  const images = addImages(upstream, 60)
  t.strictSame(await pullAll(server, images), [])
  const before = heldBytes(server)
  t.ok(before > 30 * mebibyte, `the mirror has filled the disk: ${before} bytes`)

  const pushed = image({ layers: [randomBlob(20 * mebibyte)] })
  await push(server, 'own/app', 'latest', pushed)
  await stillThere(t, server, pushed)
  t.strictSame(await pullAll(server, images.slice(0, 4)), [], 'what has gone is fetched again')

  const more = randomBlob(20 * mebibyte)
  const path = `/v2/own/app/blobs/uploads/?digest=${more.digest}`
  t.equal((await server.request('POST', path, { body: more.bytes })).status, 201)
  const tooMuch = randomBlob(20 * mebibyte)
  const refused = await server.request('POST', path.replace(more.digest, tooMuch.digest), {
    body: tooMuch.bytes,
    fresh: true,
    unchecked: true,
  })
  t.equal(refused.status, 507, 'what was pushed makes room for nothing')
  await stillThere(t, server, pushed)
  t.equal((await server.request('HEAD', `/v2/own/app/blobs/${more.digest}`)).status, 200)
  await server.stop()
  execFileSync('rm', ['-rf', server.data])
})

t.test('S83: mirrors make room for bodies without a length, and the floor holds', { skip }, async (t) => {
  const keep = 12 * mebibyte
  const config = { disk: { floor: '12MiB', reserve: '0B' }, workers: 2 }
  const { upstream, server } = await startSmall(t, 'chunked', {}, config)
  const images = addImages(upstream, 60)
  t.strictSame(await pullAll(server, images), [])
  t.ok(heldBytes(server) > 20 * mebibyte, 'the mirror has filled the disk')

  const chunked = async (repository: string, { bytes }: { bytes: Buffer }) => {
    const location = (
      await server.request('POST', `/v2/${repository}/blobs/uploads/`, { fresh: true })
    ).header('location')
    return server.request('PATCH', location, { body: bytes, chunked: true, fresh: true, unchecked: true })
  }
  const alone = await watch(server, async () => {
    const reply = await chunked('own/app', randomBlob(16 * mebibyte))
    t.equal(reply.status, 202, reply.text)
  })
  t.ok(alone.leastFree >= keep - mebibyte, `${keep - alone.leastFree} bytes below the floor`)
  const together = await watch(server, async () => {
    const replies = await Promise.all(
      ['a', 'b', 'c'].map((name) => chunked(`own/${name}`, randomBlob(4 * mebibyte))),
    )
    t.strictSame(
      replies.map(({ status }) => status),
      [202, 202, 202],
    )
  })
  t.ok(together.leastFree >= keep - 4 * mebibyte, `${keep - together.leastFree} bytes below the floor`)
  const tooMuch = await chunked('own/app', randomBlob(40 * mebibyte))
  t.equal(tooMuch.status, 507, 'what does not fit is refused')
  t.ok(freeBytes() >= keep - mebibyte, 'and gives its room back')
  await server.stop()
  execFileSync('rm', ['-rf', server.data])
})

t.test(
  'what a backup on the same disk has, too, is not evicted: that would free nothing',
  { skip },
  async (t) => {
    const { upstream, server } = await startSmall(t, 'linked', {}, { disk: { floor: '4MiB', reserve: '0B' } })
    const [linked, evictable] = [addImages(upstream, 12), [] as ReturnType<typeof addImages>]
    t.strictSame(await pullAll(server, linked), [])
    const backup = join(folder, 'backup')
    const { code, stderr } = await runCommand(server.data, ['backup', backup])
    t.equal(code, 0, stderr)
    for (let n = 0; n < 12; n++) {
      const layer = randomBytes(1_000_000)
      upstream.addImage(`later/app${n}`, 'latest', [layer])
      evictable.push({ name: `later/app${n}`, layers: [layer] })
    }
    t.strictSame(await pullAll(server, evictable), [])
    upstream.forget()

    const put = (size: number) => {
      const { digest, bytes } = randomBlob(size)
      const path = `/v2/own/app/blobs/uploads/?digest=${digest}`
      return server.request('POST', path, { body: bytes, fresh: true, unchecked: true })
    }
    const room = freeBytes() - 4 * mebibyte
    t.equal((await put(room + 4_000_000)).status, 201, 'what was fetched after the backup makes room')
    const refused = await put(freeBytes() + 9_000_000)
    t.equal(refused.status, 507, 'what the backup has makes none')
    t.strictSame(await pullAll(server, linked), [])
    t.equal(upstream.asked('GET', /\/blobs\//).length, 0, 'and is served from here')

    const needed = freeBytes() + 2_000_000
    rmSync(backup, { recursive: true })
    await eventually(
      'without the backup it makes room',
      async () => (await put(needed)).status === 201,
      30_000,
    )
    await server.stop()
    execFileSync('rm', ['-rf', server.data])
  },
)

t.test(
  'a disk without a free byte keeps nobody waiting, now or when there is room again',
  { skip },
  async (t) => {
    const { upstream, server } = await startSmall(t, 'full', {}, { disk: { floor: '0B', reserve: '0B' } })
    const images = addImages(upstream, 8)
    const filler = join(folder, 'filler')
    // The disk is full as soon as the upstream is asked: what was taken for that cannot be given back.
    let isFilling = true
    upstream.fault = () => {
      if (!isFilling) return undefined
      return ({ send, reply }) => {
        fillUp(filler)
        send(reply)
      }
    }
    const paths = images.flatMap(({ name, layers }) => [
      `/v2/docker.io/${name}/manifests/latest`,
      `/v2/docker.io/${name}/blobs/${digest(layers[1] ?? Buffer.of())}`,
    ])
    const pull = (path: string) => server.request('GET', path, { fresh: true, unchecked: true })
    const refused = new Set<string>()
    for (const path of paths) {
      // Each on a connection of its own: other workers wait for the one that was first.
      const replies = await Promise.all([pull(path), pull(path), pull(path)])
      for (const { status } of replies) {
        t.ok([200, 507].includes(status), `${status} on a full disk`)
        if (status === 507) refused.add(path)
      }
      const again = await pull(path)
      t.ok([200, 507].includes(again.status), `${again.status} on the disk that is still full`)
      rmSync(filler, { force: true })
    }
    t.ok(refused.size > paths.length / 2, `${refused.size} of ${paths.length} were refused`)
    isFilling = false
    for (const path of paths) t.equal((await pull(path)).status, 200, 'with room it is served')
    await server.stop()
    execFileSync('rm', ['-rf', server.data])
  },
)
