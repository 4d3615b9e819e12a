import { spawnSync } from 'node:child_process'
import { randomInt } from 'node:crypto'
import { existsSync, mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import { readMetric } from './check-served.js'
import { checkFolder, type StoredIndex } from './checker.js'
import { GcClient, makeCommon, uploadLife } from './gc-client.js'
import { readWhole } from './options.js'
import { Random } from './random.js'
import { type RunningServer, startServer } from './server.js'
import { Wire } from './wire.js'

const help = `Usage: node dist/test/torture/gc.js [options]

Collects garbage all the time (every 50 ms, with a grace of a second) while clients push, mount, tag, delete and pull the
same images; then checks that nothing needed is missing, and that nothing is left over.

  --seconds N      how long (default 60)
  --seed N         repeats the choices of a run; every run prints its seed
  --clients N      clients that work at once (default 64)
  --workers N      worker processes of the server (default 2)
  --grace N        milliseconds (default 1000)
  --dir DIR        put the data folder below DIR (default: the system's temporary folder)
  --server FILE    the server's compiled main.js (default: the one this was compiled with)
`

interface Options {
  readonly seconds: number
  readonly seed: number
  readonly clients: number
  readonly workers: number
  readonly grace: number
  readonly dir: string
  readonly server: string
}

/** @throws Error with a sentence for the user */
function parseCommandLine(args: readonly string[]): Options | undefined {
  const { values } = parseArgs({
    args: [...args],
    options: {
      help: { type: 'boolean', default: false },
      seconds: { type: 'string', default: '60' },
      seed: { type: 'string', default: String(randomInt(1, 2 ** 31)) },
      clients: { type: 'string', default: '64' },
      workers: { type: 'string', default: '2' },
      grace: { type: 'string', default: '1000' },
      dir: { type: 'string', default: tmpdir() },
      server: { type: 'string', default: fileURLToPath(new URL('../../src/main.js', import.meta.url)) },
    },
  })
  if (values.help) return undefined
  if (!existsSync(values.server)) throw new Error(`there is no server at ${values.server}`)
  const { seconds, seed, clients, workers, grace } = values
  const numbers = { seconds, seed, clients, workers, grace }
  const wholes = Object.entries(numbers).map(([name, text]) => [name, readWhole(name, text)])
  return { ...Object.fromEntries(wholes), dir: values.dir, server: values.server }
}

/** @returns whether all is well */
async function torture(options: Options): Promise<boolean> {
  const { seed, clients, grace } = options
  const folder = mkdtempSync(join(options.dir, 'boathouse-gc-'))
  console.log(`gc: seed ${seed}`)
  const violations: string[] = []
  const report = (violation: string) => {
    violations.push(violation)
    if (violations.length <= 20) console.log(violation)
  }
  const counts = { manifests: 0, pulls: 0, mounts: 0, late: 0 }
  const data = join(folder, 'data')
  const server = await startServer({
    main: options.server,
    data,
    log: join(folder, 'server.log'),
    workers: options.workers,
    expireAfter: uploadLife / 1000,
    env: {
      BOATHOUSE_GC_INTERVAL: '50ms',
      BOATHOUSE_GC_GRACE: `${grace}ms`,
      BOATHOUSE_GC_UNTAGGED: `${grace}ms`,
    },
  })
  const common = { ...makeCommon(new Random(seed, 'common')), grace, report, counts }
  const wires = Array.from({ length: clients }, () => new Wire(server.port))
  const all = wires.map((wire, at) => new GcClient(`c${at}`, new Random(seed, 'client', at), wire, common))
  const end = performance.now() + options.seconds * 1000
  await Promise.all(
    all.map((client) => client.work(() => performance.now() > end || violations.length > 200)),
  )
  await delay(2 * grace)
  await Promise.all(all.map((client) => client.check()))
  const collected = await readCollected(server)
  for (const wire of wires) wire.close()
  if (collected === 0) report('nothing was ever collected')
  await stopAndCheck(server, { ...options, data, report })
  if (violations.length === 0) rmSync(folder, { recursive: true, force: true })
  else console.log(`gc: replay with --seed ${seed}; the data folder is kept in ${folder}`)
  const { manifests, pulls, mounts, late } = counts
  console.log(
    `gc: manifests ${manifests}, pulls ${pulls}, mounts ${mounts}, refused after the grace ${late}, blobs collected ${collected}, violations ${violations.length}`,
  )
  console.log(violations.length === 0 ? '1 passed, 0 failed' : '0 passed, 1 failed')
  return violations.length === 0
}

async function readCollected(server: RunningServer): Promise<number> {
  const wire = new Wire(server.port)
  const blobs = await readMetric(wire, 'boathouse_gc_blobs_total')
  wire.close()
  return blobs
}

/** Ends the server, collects once more with hardly any grace, and looks at what is left. */
async function stopAndCheck(
  server: RunningServer,
  { server: main, data, report }: Options & { data: string; report: (violation: string) => void },
): Promise<void> {
  server.stop()
  const code = await server.gone
  if (code !== 0) report(`I9 the server ended with ${code} after SIGTERM`)
  await delay(100)
  const { status, stderr } = spawnSync(process.execPath, [main, 'gc', '--data', data], {
    encoding: 'utf8',
    env: { BOATHOUSE_GC_GRACE: '10ms', BOATHOUSE_GC_UNTAGGED: '10ms' },
  })
  if (status !== 0) report(`the last collection ended with ${status}: ${stderr}`)
  const check = checkFolder(data, { isCleanStop: true, mayBeOrphan: () => false })
  for (const violation of check.violations) report(violation)
  for (const violation of leftOver(check.index)) report(violation)
}

/** What the index holds without a reason. */
function* leftOver(index: StoredIndex): Generator<string> {
  const linked = new Set<string>()
  for (const [name, { blobs, manifests, tags }] of index.repositories) {
    const named = new Set([...manifests.values()].flatMap(({ children }) => [...children]))
    for (const digest of blobs) {
      linked.add(digest)
      if (!named.has(digest)) yield `left over: ${name} has blob ${digest}, which none of its manifests names`
    }
    const reached = new Set(tags.values())
    for (let size = -1; size < reached.size; ) {
      size = reached.size
      for (const { digest, children, subject } of manifests.values()) {
        if (reached.has(digest)) for (const child of children) reached.add(child)
        if (subject !== undefined && reached.has(subject)) reached.add(digest)
      }
    }
    for (const digest of manifests.keys()) {
      if (!reached.has(digest)) yield `left over: ${name} has manifest ${digest}, to which no tag leads`
    }
  }
  for (const digest of index.blobs.keys()) {
    if (!linked.has(digest)) yield `left over: blob ${digest}, which no repository has`
  }
}

for (const [signal, code] of [
  ['SIGINT', 130],
  ['SIGTERM', 143],
] as const) {
  process.once(signal, () => process.exit(code))
}
try {
  const options = parseCommandLine(process.argv.slice(2))
  if (options === undefined) console.log(help)
  else if (!(await torture(options))) process.exitCode = 1
} catch (error) {
  console.error(error instanceof Error ? error.message : error)
  process.exitCode = 2
}
