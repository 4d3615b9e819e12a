import { randomInt } from 'node:crypto'
import { copyFileSync, mkdirSync, statSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import { checkFolder, checkServed, expectationsOf, referrersOf } from './checker.js'
import { digestOf, type Image, makeImage } from './content.js'
import { FullClient, grace } from './full-client.js'
import { readWhole } from './options.js'
import { Random } from './random.js'
import { type RunningServer, startServer } from './server.js'
import { type DiskKind, diskKinds, noSmallDisks, SmallDisk } from './small-disk.js'
import { Wire } from './wire.js'

const help = `Usage: node dist/test/torture/disk-full.js [options]

Fills small disks to seeded levels, pushes, mounts, retags, deletes and pulls at each of them, and gives the room back.

  --levels N     levels (default 300)
  --seed N       repeats the choices of a run; every run prints its seed
  --server FILE  another build's main.js
`

/** Levels on one disk, between a start of the server and a look at its folder. */
const levelsPerDisk = 25

interface Options {
  readonly levels: number
  readonly seed: number
  readonly server: string
}

/** What the levels of one disk work with. */
interface Stage {
  readonly kind: DiskKind
  readonly disk: SmallDisk
  readonly data: string
  readonly client: FullClient
  readonly base: Image
  readonly report: (violation: string) => void
}

/** @throws Error with a sentence for the user */
function parseCommandLine(args: readonly string[]): Options | undefined {
  const { values } = parseArgs({
    args: [...args],
    options: {
      help: { type: 'boolean', default: false },
      levels: { type: 'string', default: '300' },
      seed: { type: 'string', default: String(randomInt(1, 2 ** 31)) },
      server: { type: 'string', default: fileURLToPath(new URL('../../src/main.js', import.meta.url)) },
    },
  })
  if (values.help) return undefined
  const { levels, seed, server } = values
  return { levels: readWhole('levels', levels), seed: readWhole('seed', seed), server }
}

/** One level: everything is tried while hardly anything is left, and again when there is room. */
async function runLevel(stage: Stage, level: number, random: Random): Promise<void> {
  const { kind, disk, client, base, report } = stage
  const image = makeImage(random, [])
  const doomed = makeImage(random, [])
  const repository = `level/app${level % 3}`
  await client.pushAgain('doomed', `d${level}`, doomed, random)
  if (kind === 'inodes') disk.fillFiles(random.int(0, 25))
  else disk.fillBytes(random.chance(0.3) ? 0 : random.int(0, random.chance(0.5) ? 65_536 : 2_000_000))

  await client.pull('base', 'x', base)
  const outcome = await client.push(repository, `l${level}`, image, random)
  if (outcome === 'done') await client.pull(repository, `l${level}`, image)
  await client.mount(`level/mount${level}`, base.manifest.blobs[0] ?? '', 'base')
  await client.putManifest('base', `y${random.int(0, 5)}`, base.manifest)
  const before = reserveOf(stage)
  const deleted = await client.delete('doomed', digestOf(doomed.manifest.bytes))
  if (deleted === 'full' && before > 0 && reserveOf(stage) > 0)
    report('a delete is refused, with a reserve at hand')
  await client.pull('base', 'x', base)

  disk.empty()
  await client.cancelOpen()
  await client.pushAgain(repository, `l${level}`, image, random)
  await client.pull(repository, `l${level}`, image)
  await client.delete(repository, digestOf(image.manifest.bytes))
  if (deleted === 'full') await client.delete('doomed', digestOf(doomed.manifest.bytes))
}

function reserveOf({ data }: Stage): number {
  return statSync(join(data, 'reserve'), { throwIfNoEntry: false })?.size ?? 0
}

/** Runs levels on a disk of their own, then looks at what is there. @returns refusals that were seen */
async function runDisk(options: Options, from: number, to: number, tell: (violation: string) => void) {
  const random = new Random(options.seed, 'disk', from)
  const kind = diskKinds[(from / levelsPerDisk) % diskKinds.length] ?? 'tmpfs'
  const floor = random.pick(['0B', '0B', '1MiB']) ?? '0B'
  const workers = random.int(1, 2)
  const report = (violation: string) =>
    tell(`${kind}, floor ${floor}, levels ${from} to ${to - 1}: ${violation}`)
  const disk = new SmallDisk(kind)
  const data = join(disk.root, 'data')
  const logs = join(tmpdir(), `boathouse-disk-full-${process.pid}`)
  mkdirSync(logs, { recursive: true })
  const log = join(logs, `${from}.log`)
  const start = () =>
    startServer({
      main: options.server,
      data,
      log,
      workers,
      expireAfter: 600,
      env: {
        BOATHOUSE_DISK_FLOOR: floor,
        BOATHOUSE_DISK_RESERVE: '4MiB',
        BOATHOUSE_GC_INTERVAL: '200ms',
        BOATHOUSE_GC_GRACE: `${grace}ms`,
        BOATHOUSE_SNAPSHOTS_KEEP: '0',
      },
    })
  try {
    const server = await start()
    const wire = new Wire(server.port)
    const client = new FullClient(wire, report)
    const base = makeImage(new Random(options.seed, 'base', from), [])
    await client.pushAgain('base', 'x', base, random)
    const stage: Stage = { kind, disk, data, client, base, report }
    for (let level = from; level < to; level++) await runLevel(stage, level, new Random(options.seed, level))
    wire.close()
    await stop(server, report)
    await checkAll(data, start, report)
    return client.refusals
  } catch (error) {
    report(error instanceof Error ? error.message : String(error))
    copyFileSync(log, `${log}.kept`)
    return 0
  } finally {
    disk.remove()
  }
}

async function stop(server: RunningServer, report: (violation: string) => void): Promise<void> {
  server.stop()
  const code = await server.gone
  if (code !== 0) report(`I9 the server ended with ${code} after SIGTERM`)
}

/** The invariants, over the files and over HTTP. */
async function checkAll(
  data: string,
  start: () => Promise<RunningServer>,
  report: (violation: string) => void,
): Promise<void> {
  const { violations, index } = checkFolder(data, { isCleanStop: true })
  for (const violation of violations) report(violation)
  const server = await start()
  const served = await checkServed({
    port: server.port,
    expectations: expectationsOf(index).filter(({ kind }) => kind !== 'blob'), // those are collected meanwhile
    referrers: referrersOf(index),
  })
  for (const violation of served) report(violation)
  await stop(server, report)
}

/** @returns whether all is well */
async function torture(options: Options): Promise<boolean> {
  console.log(`disk-full: seed ${options.seed}`)
  const failed = new Set<number>()
  let refusals = 0
  for (let from = 0; from < options.levels; from += levelsPerDisk) {
    const to = Math.min(from + levelsPerDisk, options.levels)
    refusals += await runDisk(options, from, to, (violation) => {
      failed.add(from)
      console.log(violation)
    })
  }
  if (refusals === 0) {
    console.log('no level was full')
    failed.add(-1)
  }
  const bad = Math.min(options.levels, failed.size * levelsPerDisk)
  console.log(`disk-full: ${options.levels} levels, ${refusals} refusals of the right shape`)
  console.log(`${options.levels - bad} passed, ${bad} failed`)
  return failed.size === 0
}

for (const [signal, code] of [
  ['SIGINT', 130],
  ['SIGTERM', 143],
] as const) {
  process.once(signal, () => process.exit(code))
}
try {
  const options = parseCommandLine(process.argv.slice(2))
  const reason = noSmallDisks()
  if (options === undefined) console.log(help)
  else if (reason !== undefined) console.log(`disk-full: skipped: ${reason}\n0 passed, 0 failed`)
  else if (!(await torture(options))) process.exitCode = 1
} catch (error) {
  console.error(error instanceof Error ? error.message : error)
  process.exitCode = 2
}
