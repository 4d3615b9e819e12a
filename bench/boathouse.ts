import { existsSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { runJob } from './load.js'
import { freePort, type Registry, type Server, startServer } from './server.js'

/** What may be changed about our own server for an experiment. */
export interface BoathouseOptions {
  /** Options for Node itself, such as `--cpu-prof`. */
  readonly nodeOptions: readonly string[]
  /** The `workers` setting; the server's own choice when absent. */
  readonly workers?: string
}

const PROGRAM = fileURLToPath(new URL('../src/main.js', import.meta.url))
const SEED_LIMIT_SECONDS = 60

// Settings of the person who runs the benchmark must not change what is measured.
function cleanEnvironment(workers: string | undefined): NodeJS.ProcessEnv {
  const names = Object.entries(process.env).filter(([name]) => !/^(BOATHOUSE_|NODE_OPTIONS$)/.test(name))
  return { ...Object.fromEntries(names), ...(workers === undefined ? {} : { BOATHOUSE_WORKERS: workers }) }
}

/** Boathouse as it starts by itself: default settings, its request log going to a file. */
export function boathouse(options: BoathouseOptions): Registry {
  if (!existsSync(PROGRAM)) throw new Error('the server is not built: run `npm run build` first')
  return {
    name: 'Boathouse',

    async start(folder) {
      const port = await freePort()
      const serve = ['serve', '--listen', `127.0.0.1:${port}`, '--data', join(folder, 'data')]
      const args = [...options.nodeOptions, PROGRAM, ...serve]
      const env = cleanEnvironment(options.workers)
      return startServer({ program: process.execPath, args, env }, { host: '127.0.0.1', port }, folder)
    },

    async seedTags({ target }: Server, repository: string, count: number) {
      const perRequest = 100
      const job = { kind: 'tags', target, repository, source: 'source', count, perRequest } as const
      await runJob(job, SEED_LIMIT_SECONDS)
    },
  }
}
