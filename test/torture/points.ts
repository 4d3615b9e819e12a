import { readFileSync } from 'node:fs'
import type { Call } from '../stores/trace.js'
import type { Scene } from './scene.js'
import { mutatingCalls, pathOf, type Threads, watch } from './strace.js'

/** One system call of an operation, so described that it is met again when the operation is done again. */
export interface Point {
  /** The thread that makes it: see threads.ts. */
  readonly role: string
  readonly call: string
  /** What it is about, from the scene's folder; undefined when its name is a random one. */
  readonly path: string | undefined
  /** Which it is of this thread's calls of this name, on this path if there is one: 1 for the first. */
  readonly nth: number
  /** Whether it changes what is on the disk, or makes it durable: a file that is opened to be read does not. */
  readonly isChange: boolean
  /** Whether it makes what it names: an entry of a folder, and so takes room. */
  readonly isMaking: boolean
  /**
   * What it has in common with calls that are the same but for the leaf that they are about, one of the 256 folders
   * of an algorithm; undefined when it is about no leaf.
   */
  readonly leafCall: string | undefined
}

/** A leaf at the end of a path: what is done to one is done to all. */
const leafPath = /\/(sha256|sha512)\/[0-9a-f]{2}$/

/** A point for sentences. */
export function describePoint({ role, call, path, nth }: Point): string {
  return `${call} ${nth}${path === undefined ? '' : ` of ${path}`} in ${role}`
}

/** Names that are others each time a process does the same, or a server does it with other bytes. */
const randomNames = {
  process: /[0-9a-f]{8}-[0-9a-f]{4}-|\/snapshots\/|\/damaged\/|\/quarantine\//,
  requests: /[0-9a-f]{8}-[0-9a-f]{4}-|\/blobs\/|\/uploads\/fill-/,
}

/** Calls that are about the scene's files. */
function relevantCalls(scene: Scene, calls: readonly Call[]): readonly Call[] {
  return calls.filter(
    (call) => pathOf(call)?.startsWith(`${scene.root}/`) === true && !isOfTracer(scene, call),
  )
}

/** The log of the server, and the list of its threads: they are the test's own. */
function isOfTracer(scene: Scene, call: Call): boolean {
  const path = pathOf(call)
  return path === scene.log || path?.startsWith(`${scene.root}/threads`) === true
}

/** Says which points the calls are. @param calls all that were seen, relevant or not */
export function pointsOf(
  scene: Scene,
  calls: readonly Call[],
  { roles, what }: { readonly roles: ReadonlyMap<number, string>; readonly what: keyof typeof randomNames },
): Point[] {
  const relevant = new Set(relevantCalls(scene, calls))
  const counts = new Map<string, number>()
  const count = (key: string) => {
    const value = (counts.get(key) ?? 0) + 1
    counts.set(key, value)
    return value
  }
  const points: Point[] = []
  for (const call of calls) {
    const role = roles.get(call.thread)
    const path = pathOf(call)
    // What is to happen to a call is counted from where its thread has told its name, and waits.
    if (call.name === 'write' && path === `${scene.root}/threads`) {
      for (const key of counts.keys()) if (key.startsWith(`${role} `)) counts.delete(key)
    }
    const total = count(`${role} ${call.name}`)
    const onPath = count(`${role} ${call.name} ${path}`)
    if (!relevant.has(call)) continue
    if (role === undefined) throw new Error(`nobody knows thread ${call.thread}, which made ${call.name}`)
    const isRandom = path === undefined || randomNames[what].test(path)
    points.push({
      role,
      call: call.name,
      path: isRandom ? undefined : path.slice(scene.root.length + 1),
      nth: isRandom ? total : onPath,
      isChange: call.name !== 'openat' || /O_CREAT|O_TRUNC/.test(call.args),
      isMaking: call.name !== 'openat' || call.args.includes('O_CREAT'),
      leafCall:
        path !== undefined && leafPath.test(path)
          ? `${role} ${call.name} ${path.slice(scene.root.length).replace(leafPath, '/$1/*')}`
          : undefined,
    })
  }
  return points
}

/** What happens to a call: `signal=SIGKILL` before it, or `error=EIO` in its place; and to all like it that follow? */
export interface InjectionKind {
  readonly what: string
  readonly isLasting?: boolean
}

/** Makes something happen to the call of a point. */
export async function inject(
  scene: Scene,
  threads: Threads,
  point: Point,
  { what, isLasting = false }: InjectionKind,
  isOver?: () => boolean,
): Promise<Injection> {
  const id = await threads.find(point.role, isOver)
  if (id === undefined) return { end: async () => ({ hit: undefined, after: [], isTorn: false }) }
  const watched = await watch({
    id,
    log: `${scene.root}/threads.inject`,
    calls: point.call,
    path: point.path === undefined ? undefined : `${scene.root}/${point.path}`,
    // With this one the server finds out what a failed write of the index means.
    also: isLasting ? `${scene.root}/data/boathouse.db-probe` : undefined,
    inject: { what, nth: point.nth, isLasting },
  })
  return {
    async end() {
      const calls = await watched.end()
      const at = calls.findIndex(({ result }) => result.includes('(INJECTED)') || /^\??$/.test(result))
      const hit = calls[at]
      const isRelevant = hit !== undefined && relevantCalls(scene, [hit]).length > 0
      const isTorn = isLasting && isCutOff(readFileSync(`${scene.root}/threads.inject`, 'utf8'))
      return { hit: isRelevant ? hit : undefined, after: at < 0 ? [] : calls.slice(at + 1), isTorn }
    },
  }
}

/** Whether the last call of a log was cut off by its end, or is one that is to be followed by another. */
function isCutOff(log: string): boolean {
  const last = log.trimEnd().split('\n').at(-1) ?? ''
  return last.includes('<detached') || /boathouse\.db(?:-wal)?>.*\(INJECTED\)$/.test(last)
}

/** Something that is about to happen to a call. */
export interface Injection {
  /**
   * To be called when all is over. Tells the call that it happened to, and those of the thread after it; and whether
   * something that was to last ended between a failed write of the index and the look at why it failed.
   */
  end(): Promise<{
    readonly hit: Call | undefined
    readonly after: readonly Call[]
    readonly isTorn: boolean
  }>
}

/** Records all that a process does from now on. */
export function record(scene: Scene, id: number): Promise<{ end(): Promise<readonly Call[]> }> {
  return watch({ id, all: true, log: `${scene.root}/threads.record`, calls: mutatingCalls })
}
