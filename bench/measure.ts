import { readdirSync, readFileSync } from 'node:fs'

// Linux counts processor time for user space in hundredths of a second, whatever its own timer does.
const TICKS_PER_SECOND = 100

interface ProcessStat {
  readonly parent: number
  /** Own processor time, user and system, in seconds. */
  readonly cpu: number
  /** Processor time of children that have ended and were waited for, in seconds. */
  readonly childCpu: number
}

function readText(path: string): string {
  try {
    return readFileSync(path, 'latin1')
  } catch {
    return '' // the process ended between listing and reading
  }
}

function readStat(pid: number | 'self'): ProcessStat | undefined {
  const text = readText(`/proc/${pid}/stat`)
  // The name comes second, in brackets, and may hold spaces; everything else is counted from its end.
  const fields = text.slice(text.lastIndexOf(')') + 2).split(' ')
  if (fields.length < 20) return undefined
  const seconds = (index: number) => Number(fields[index]) / TICKS_PER_SECOND
  return { parent: Number(fields[1]), cpu: seconds(11) + seconds(12), childCpu: seconds(13) + seconds(14) }
}

/** The process and everything it started that still runs. */
export function processTree(root: number): number[] {
  const children = new Map<number, number[]>()
  for (const entry of readdirSync('/proc')) {
    const pid = Number(entry)
    const stat = pid > 0 ? readStat(pid) : undefined
    if (stat) children.set(stat.parent, [...(children.get(stat.parent) ?? []), pid])
  }
  const tree = [root]
  for (const pid of tree) tree.push(...(children.get(pid) ?? []))
  return tree
}

/** Processor time in seconds that these processes have used so far. */
export function cpuOf(pids: readonly number[]): number {
  return pids.reduce((sum, pid) => sum + (readStat(pid)?.cpu ?? 0), 0)
}

/** Processor time in seconds of this process and of its children that have ended. */
export function ownCpu(): number {
  const stat = readStat('self')
  return stat ? stat.cpu + stat.childCpu : 0
}

/** Processor time in seconds that the whole machine has spent on anything since it started. */
export function machineCpu(): number {
  const [line = ''] = readText('/proc/stat').split('\n')
  const [user = 0, nice = 0, system = 0, , , irq = 0, softirq = 0] = line.split(/\s+/).slice(1).map(Number)
  return (user + nice + system + irq + softirq) / TICKS_PER_SECOND
}

/** Memory of a group of processes in bytes. */
export interface Memory {
  /** Highest sum of the resident sets seen at one moment; pages shared by processes count once for each. */
  readonly rss: number
  /** Highest sum of the proportional sets: shared pages are divided among those who share them. */
  readonly pss: number
  /** Sum of each process's own high-water mark as the kernel keeps it: nothing can slip between two samples. */
  readonly highWater: number
}

function kibibytes(text: string, field: string): number {
  const match = new RegExp(`^${field}:\\s+(\\d+) kB`, 'm').exec(text)
  return match ? Number(match[1]) * 1024 : 0
}

function sumOf(pids: readonly number[], file: string, field: string): number {
  return pids.reduce((sum, pid) => sum + kibibytes(readText(`/proc/${pid}/${file}`), field), 0)
}

/** Watches the memory of a process and its descendants until it is stopped. */
export class MemoryWatch {
  readonly #root: number
  readonly #timers: NodeJS.Timeout[]
  #pids: number[]
  #rss = 0
  #pss = 0
  #highWater = 0

  constructor(root: number) {
    this.#root = root
    this.#pids = processTree(root)
    this.#timers = [
      setInterval(() => this.#sampleResident(), 50),
      // Costs the kernel a walk over the page tables, so it is done less often.
      setInterval(() => this.#sampleProportional(), 500),
    ]
  }

  /** Ends the watch and tells the peaks. */
  stop(): Memory {
    for (const timer of this.#timers) clearInterval(timer)
    this.#sampleResident()
    this.#sampleProportional()
    return { rss: this.#rss, pss: this.#pss, highWater: this.#highWater }
  }

  #sampleResident(): void {
    this.#rss = Math.max(this.#rss, sumOf(this.#pids, 'status', 'VmRSS'))
    this.#highWater = Math.max(this.#highWater, sumOf(this.#pids, 'status', 'VmHWM'))
  }

  #sampleProportional(): void {
    this.#pids = processTree(this.#root)
    this.#pss = Math.max(this.#pss, sumOf(this.#pids, 'smaps_rollup', 'Pss'))
  }
}

/** The middle value; of two middle ones, their mean. NaN for none. */
export function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b)
  const middle = sorted.length / 2
  const low = sorted[Math.ceil(middle) - 1] ?? Number.NaN
  const high = sorted[Math.floor(middle)] ?? Number.NaN
  return (low + high) / 2
}

/** The smallest value that at least this share (0 to 1) of the sorted values does not exceed. NaN for none. */
export function percentile(sorted: readonly number[], share: number): number {
  return sorted[Math.max(0, Math.ceil(sorted.length * share) - 1)] ?? Number.NaN
}
