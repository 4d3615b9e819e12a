import { execFileSync } from 'node:child_process'
import { existsSync, readFileSync } from 'node:fs'
import { basename, join, resolve } from 'node:path'
import { fileURLToPath } from 'node:url'
import { runJob } from './load.js'
import { loadLargeRegistry } from './scale-loader.js'
import {
  type Command,
  freePort,
  type GuardedOptions,
  type GuardedServer,
  type Registry,
  type Server,
  startServer,
} from './server.js'

/** What may be changed about our own server for an experiment. */
export interface BoathouseOptions {
  /** Options for Node itself, such as `--cpu-prof`. */
  readonly nodeOptions: readonly string[]
  /** The `workers` setting; the server's own choice when absent. */
  readonly workers?: string
  /** The folder of another version, built, in place of this one. */
  readonly folder?: string
}

const OWN_PROGRAM = fileURLToPath(new URL('../src/main.js', import.meta.url))
const SEED_LIMIT_SECONDS = 60

// Settings of the person who runs the benchmark must not change what is measured.
function cleanEnvironment(workers: string | undefined): NodeJS.ProcessEnv {
  const names = Object.entries(process.env).filter(([name]) => !/^(BOATHOUSE_|NODE_OPTIONS$)/.test(name))
  return { ...Object.fromEntries(names), ...(workers === undefined ? {} : { BOATHOUSE_WORKERS: workers }) }
}

const USER = 'bench'
const PASSWORD = 'a long enough password'
const SERVICE = 'boathouse'

/** The same command on the first core that this process may use. */
function onOneCore({ program, args, env }: Command): Command {
  const [, core = '0'] =
    /^Cpus_allowed_list:\s*(\d+)/m.exec(readFileSync('/proc/self/status', 'latin1')) ?? []
  return { program: 'taskset', args: ['--cpu-list', core, program, ...args], ...(env ? { env } : {}) }
}

async function askToken(server: Server, authorization: string, repository: string): Promise<string> {
  const { host, port } = server.target
  const query = new URLSearchParams({ service: SERVICE, scope: `repository:${repository}:pull,push` })
  const reply = await fetch(`http://${host}:${port}/auth/token?${query}`, {
    headers: { authorization },
  })
  if (!reply.ok) throw new Error(`no token: ${reply.status} ${await reply.text()}`)
  return ((await reply.json()) as { token: string }).token
}

/** Boathouse as it starts by itself: default settings, its request log going to a file. */
export function boathouse(options: BoathouseOptions): Registry {
  const script = options.folder === undefined ? OWN_PROGRAM : resolve(options.folder, 'dist/src/main.js')
  if (!existsSync(script)) throw new Error(`${script} is missing: run \`npm run build\` there first`)

  function command(folder: string, port: number, env: NodeJS.ProcessEnv): Command {
    const serve = ['serve', '--listen', `127.0.0.1:${port}`, '--data', join(folder, 'data')]
    return { program: process.execPath, args: [...options.nodeOptions, script, ...serve], env }
  }

  function manage(folder: string, words: readonly string[], input: string): void {
    const args = [script, ...words, '--data', join(folder, 'data')]
    execFileSync(process.execPath, args, { input, env: cleanEnvironment(undefined), stdio: 'pipe' })
  }

  return {
    name: options.folder === undefined ? 'Boathouse' : `Boathouse of ${basename(resolve(options.folder))}`,

    async start(folder, settings = {}) {
      const port = await freePort()
      const env = { ...cleanEnvironment(options.workers), ...settings }
      return startServer(command(folder, port, env), { host: '127.0.0.1', port }, folder)
    },

    async startGuarded(
      folder: string,
      { onOneCore: pinned = false, pull }: GuardedOptions,
    ): Promise<GuardedServer> {
      const port = await freePort()
      const env = { ...cleanEnvironment(pinned ? '1' : options.workers), BOATHOUSE_AUTH: 'token' }
      const plain = command(folder, port, env)
      const target = { host: '127.0.0.1', port }
      const server = await startServer(pinned ? onOneCore(plain) : plain, target, folder)
      manage(folder, ['user', 'add', USER], `${PASSWORD}\n`)
      for (const pattern of pull ?? ['bench/**']) {
        manage(folder, ['grant', pull ? 'pull' : 'push', pattern, '--to', `user:${USER}`], '')
      }
      const basic = `Basic ${Buffer.from(`${USER}:${PASSWORD}`).toString('base64')}`
      return { ...server, user: USER, basic, token: (name) => askToken(server, basic, name) }
    },

    async startMirror(folder, upstream) {
      const port = await freePort()
      const mirrors = [{ name: 'upstream', url: `http://${upstream.host}:${upstream.port}` }]
      const env = { ...cleanEnvironment(options.workers), BOATHOUSE_MIRRORS: JSON.stringify(mirrors) }
      const server = await startServer(command(folder, port, env), { host: '127.0.0.1', port }, folder)
      return { ...server, prefix: 'upstream/' }
    },

    async seedTags({ target }: Server, repository: string, count: number) {
      const perRequest = 100
      const job = { kind: 'tags', target, repository, source: 'source', count, perRequest } as const
      await runJob(job, SEED_LIMIT_SECONDS)
    },

    async verify(folder: string) {
      const verify = ['verify', '--rate', 'unlimited', '--restart', '--json', '--data', join(folder, 'data')]
      const { program, args } = onOneCore({ program: process.execPath, args: [script, ...verify] })
      const output = execFileSync(program, args, { env: cleanEnvironment(undefined), encoding: 'utf8' })
      const { bytes, milliseconds } = JSON.parse(output) as { bytes: number; milliseconds: number }
      return { bytes, seconds: milliseconds / 1000 }
    },

    seedLarge: (folder) => loadLargeRegistry(join(folder, 'data')),
  }
}
