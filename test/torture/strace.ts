import { spawn } from 'node:child_process'
import { closeSync, existsSync, openSync, readFileSync, writeFileSync } from 'node:fs'
import { setTimeout as delay } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { type Call, readCalls } from '../stores/trace.js'

/** Milliseconds for a thread to appear, and for strace to take it. */
const patience = 60_000

/** System calls that change files or folders, or make changes durable. Names with ? are not in every system. */
export const mutatingCalls =
  '?open,openat,?creat,?mkdir,mkdirat,?rename,renameat,?renameat2,?link,linkat,?symlink,symlinkat,?unlink,' +
  'unlinkat,?rmdir,write,pwrite64,writev,pwritev,?pwritev2,truncate,ftruncate,fallocate,?copy_file_range,' +
  '?sendfile,fsync,fdatasync,?sync_file_range,msync,?chmod,fchmod,fchmodat,?chown,fchown,fchownat,utimensat'

/** The threads of one traced program. */
export class Threads {
  readonly #list: string

  /** @param list a file that is made; the program finds its name in {@link environment} */
  constructor(list: string) {
    this.#list = list
    writeFileSync(list, '')
  }

  /** Variables for the program. @param wanted the thread that waits until {@link release} */
  environment(wanted?: string): Record<string, string> {
    return {
      NODE_OPTIONS: `--import ${fileURLToPath(new URL('./threads.js', import.meta.url))}`,
      UV_THREADPOOL_SIZE: '1',
      UV_USE_IO_URING: '0',
      TORTURE_THREADS: this.#list,
      ...(wanted === undefined ? {} : { TORTURE_WAIT: wanted }),
    }
  }

  /** Roles by the system's number of the thread. */
  roles(): Map<number, string> {
    const lines = readFileSync(this.#list, 'utf8').split('\n').slice(0, -1)
    return new Map(lines.map((line) => [Number(line.split(' ')[1]), line.split(' ')[0] ?? '']))
  }

  /** The system's number of a thread; waits until there is one. @returns undefined when it is over before */
  async find(role: string, isOver: () => boolean = () => false): Promise<number | undefined> {
    const deadline = performance.now() + patience
    for (;;) {
      for (const [id, name] of this.roles()) if (name === role) return id
      if (isOver()) return undefined
      if (performance.now() > deadline) throw new Error(`there is no thread ${role}`)
      await delay(2)
    }
  }

  /** Lets the thread go on that waits. */
  release(): void {
    writeFileSync(`${this.#list}.go`, '')
  }
}

/** What strace is to watch and to do. */
export interface Watching {
  /** A thread, or with `all` the process and all threads that it has or will have. */
  readonly id: number
  readonly all?: boolean
  /** Where it writes. */
  readonly log: string
  /** Calls that are watched. */
  readonly calls: string
  /** Bytes of written data that are kept. */
  readonly bytes?: number
  /** Watch only what concerns this path. */
  readonly path?: string | undefined
  /** One more, beside `path`. */
  readonly also?: string | undefined
  /**
   * What is done to the n-th watched call: `signal=SIGKILL` before it happens, or `error=EIO` in its place; to those
   * that follow, too, when it lasts.
   */
  readonly inject?: { readonly what: string; readonly nth: number; readonly isLasting?: boolean }
}

/** An strace at work. */
export interface Watch {
  /** Lets the program go, if it still runs. Resolves with what was seen. */
  end(): Promise<readonly Call[]>
}

/** Attaches strace to a thread or a process. @throws Error when it cannot */
export async function watch(watching: Watching): Promise<Watch> {
  const { id, all = false, log, calls, path, also, inject } = watching
  const words = ['-y', '-s', String(watching.bytes ?? 0), '-o', log, '-e', `trace=${calls}`]
  if (watching.bytes !== undefined) words.push('-xx')
  if (path !== undefined) words.push('-P', path, ...(also === undefined ? [] : ['-P', also]))
  const more = inject?.isLasting === true ? '+' : ''
  if (inject !== undefined) words.push('-e', `inject=${calls}:${inject.what}:when=${inject.nth}${more}`)
  if (all) words.push('-f')
  const complaints = `${log}.err`
  const out = openSync(complaints, 'w')
  const child = spawn('strace', [...words, '-p', String(id)], { stdio: ['ignore', 'ignore', out] })
  closeSync(out)
  const closed = new Promise<void>((resolve) => child.once('close', () => resolve()))
  const deadline = performance.now() + patience
  while (!readFileSync(complaints, 'utf8').includes('attached')) {
    if (child.exitCode !== null || performance.now() > deadline) {
      throw new Error(`strace: ${readFileSync(complaints, 'utf8')}`)
    }
    await delay(3)
  }
  return {
    async end() {
      if (child.exitCode === null) child.kill('SIGINT')
      await closed
      return existsSync(log) ? readCalls(log) : []
    },
  }
}

/** The path that a call is about: of a name that it is given, or of its descriptor. */
export function pathOf({ args }: Call): string | undefined {
  return /"(\/[^"]*)"/.exec(args)?.[1] ?? /^\d+<(\/[^>]*)>/.exec(args)?.[1]
}
