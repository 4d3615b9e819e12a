import { describePoint, type InjectionKind, type Point } from './points.js'

/** What is done to a call: the process is killed before it, or it fails with this error. */
export type Mode = 'kill' | 'EIO' | 'ENOSPC' | 'EDQUOT' | 'EMFILE' | 'EROFS'

/** What can be done to a call. */
export const modes: readonly Mode[] = ['kill', 'EIO', 'ENOSPC', 'EDQUOT', 'EMFILE', 'EROFS']

/** What happens to a call in a mode. A quota that is used up lets no further write go well. */
export function injectionOf(mode: Mode, call: string): InjectionKind {
  if (mode === 'kill') return { what: 'signal=SIGKILL' }
  return { what: `error=${mode}`, isLasting: mode === 'EDQUOT' && isWrite(call) }
}

/** Whether a call writes bytes to a file. */
export function isWrite(call: string): boolean {
  return /^p?writev?2?(?:64)?$/.test(call)
}

/** Calls that are about an open file: it could be opened, so a filesystem that is read-only has been met before. */
const ofOpenFiles =
  /^(?:p?writev?2?|pwrite64|fsync|fdatasync|ftruncate|fallocate|sync_file_range|msync|sendfile|copy_file_range)$/

/** Calls that take room: the files' bytes, and the folders' entries. A full disk may say so only when it is synced. */
const takingRoom =
  /^(?:p?writev?2?|pwrite64|fallocate|sendfile|copy_file_range|open(?:at)?|creat|mkdir(?:at)?|link(?:at)?|symlink(?:at)?|rename(?:at2?)?|fsync|fdatasync)$/

/** Whether a call is tried in a mode: whether it changes anything, or can fail like that (its manual page). */
function isOpenTo(mode: Mode, { call, isChange, isMaking }: Point): boolean {
  switch (mode) {
    case 'kill':
      return isChange
    case 'EIO':
      return true
    case 'EMFILE':
      return /^open(?:at)?$|^creat$/.test(call)
    case 'EROFS':
      return isChange && !ofOpenFiles.test(call)
    default:
      return isMaking && takingRoom.test(call)
  }
}

/** A call, and its number in the operation: what --at takes. */
export interface Numbered {
  readonly point: Point
  readonly at: number
}

/** Which calls of an operation a mode is about. */
export interface Calls {
  readonly all: readonly Numbered[]
  /** Those of them that are tried for all: of the same call on many leaves the first two, the middle, the last two. */
  readonly distinct: readonly Numbered[]
}

/** The calls that can be met by a mode. */
export function callsFor(mode: Mode, points: readonly Point[]): Calls {
  const all = points
    .map((point, index) => ({ point, at: index + 1 }))
    .filter((one) => isOpenTo(mode, one.point))
  const groups = new Map<string, Numbered[]>()
  for (const one of all) {
    const key = one.point.leafCall ?? `${one.at} ${describePoint(one.point)}`
    const group = groups.get(key)
    if (group === undefined) groups.set(key, [one])
    else group.push(one)
  }
  const distinct = [...groups.values()].flatMap((group) => {
    const middle = Math.floor(group.length / 2)
    return group.filter((_, place) => place < 2 || place === middle || place >= group.length - 2)
  })
  return { all, distinct: distinct.sort((one, other) => one.at - other.at) }
}
