import { readFileSync } from 'node:fs'

/** A system call as strace saw it. Begin and end are places in the order of all that happened. */
export interface Call {
  /** The system's number of the thread; 0 when only one was watched. */
  readonly thread: number
  readonly name: string
  /** Its arguments and, with `-y`, the paths behind its descriptors. */
  readonly args: string
  readonly result: string
  readonly begin: number
  readonly end: number
}

/** The words for strace under which a program's work on files is recorded in a file. */
export function tracing(file: string): string[] {
  const calls = 'openat,mkdir,rename,unlink,fsync,fdatasync,write,pwrite64,writev,pwritev,pwritev2'
  return ['strace', '-f', '-y', '-s', '40', '-o', file, '-e', `trace=${calls}`]
}

/** What a program did with files, and in which order. Asking for what it never did throws. */
export class Trace {
  readonly #calls: readonly Call[]

  /** Reads what {@link tracing} recorded. */
  constructor(file: string) {
    this.#calls = readCalls(file).filter(({ result }) => result !== '' && !result.startsWith('-1'))
  }

  /** When the program said this word, as a line of JSON. */
  said(word: string): number {
    return this.#first(`say ${word}`, ({ name, args }) => name === 'write' && args.includes(`"\\"${word}\\"`))
      .begin
  }

  /** When the file or the folder had come into being. */
  made(path: string): number {
    return this.#first(`make ${path}`, ({ name, args }) => {
      const isMaking = name === 'mkdir' || (name === 'openat' && args.includes('O_CREAT'))
      return isMaking && args.includes(`"${path}"`)
    }).end
  }

  /** When the last write to the file had ended, of those within these bounds; undefined when there was none. */
  written(path: string, after: number, before: number): number | undefined {
    const writes = this.#calls.filter(
      ({ name, args, begin, end }) =>
        name.includes('write') && args.includes(`<${path}>`) && begin > after && end < before,
    )
    return writes.length === 0 ? undefined : Math.max(...writes.map((call) => call.end))
  }

  /** Whether the file was written within these bounds and synced after its last write, within them too. */
  isStored(path: string, after: number, before: number): boolean {
    const written = this.written(path, after, before)
    return written !== undefined && this.isSynced(path, written, before)
  }

  /** The renaming of a file. */
  renamed(from: string): Call {
    return this.#first(
      `rename ${from}`,
      ({ name, args }) => name === 'rename' && args.startsWith(`"${from}"`),
    )
  }

  /** The removal of a file. */
  unlinked(path: string): Call {
    return this.#first(
      `unlink ${path}`,
      ({ name, args }) => name === 'unlink' && args.startsWith(`"${path}"`),
    )
  }

  /** Whether a sync of the file or the folder both began and ended within these bounds. */
  isSynced(path: string, after: number, before: number): boolean {
    return this.#calls.some(
      ({ name, args, begin, end }) =>
        name.endsWith('sync') && args.endsWith(`<${path}>`) && begin > after && end < before,
    )
  }

  #first(what: string, test: (call: Call) => boolean): Call {
    const found = this.#calls.find(test)
    if (found === undefined) throw new Error(`the program did not ${what}`)
    return found
  }
}

/** Reads what strace wrote: the calls in the order in which they began. Those that never ended have no result. */
export function readCalls(file: string): Call[] {
  const calls: Call[] = []
  const unfinished = new Map<string, Omit<Call, 'result' | 'end'>>()
  for (const [at, line] of readFileSync(file, 'utf8').split('\n').entries()) {
    const whole = /^(?:(\d+) +)?(\w+)\((.*)\) += (.*)$/.exec(line)
    const begun = /^(?:(\d+) +)?(\w+)\((.*) <unfinished \.\.\.>\)?(?: += .*)?$/.exec(line)
    const resumed = /^(?:(\d+) +)?<\.\.\. (\w+) resumed>(.*)\) += (.*)$/.exec(line)
    if (whole !== null) {
      const [, thread = '', name = '', args = '', result = ''] = whole
      calls.push({ thread: Number(thread), name, args, result, begin: at, end: at })
    } else if (begun !== null) {
      const [, thread = '', name = '', args = ''] = begun
      unfinished.set(thread, { thread: Number(thread), name, args, begin: at })
    } else if (resumed !== null) {
      const [, thread = '', , more = '', result = ''] = resumed
      const start = unfinished.get(thread)
      if (start === undefined) continue
      calls.push({ ...start, args: start.args + more, result, end: at })
      unfinished.delete(thread)
    }
  }
  for (const start of unfinished.values()) {
    calls.push({ ...start, result: '', end: Number.POSITIVE_INFINITY })
  }
  return calls.sort((one, other) => one.begin - other.begin)
}
