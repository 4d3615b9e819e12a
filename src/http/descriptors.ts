import { readFileSync } from 'node:fs'

/** Descriptors that a process needs beside its connections: the index, pipes, modules, files that are written. */
const others = 128

/**
 * How many connections a process may take: each may need a file as well, and who accepts more than there are
 * descriptors for can serve none of them.
 * @param wanted what the settings allow
 */
export function mostConnections(wanted: number): number {
  const descriptors = readDescriptorLimit()
  return descriptors === undefined
    ? wanted
    : Math.max(8, Math.min(wanted, Math.floor((descriptors - others) / 2)))
}

/** The soft limit, which Node has raised to the hard one; undefined where the system has none or does not say. */
function readDescriptorLimit(): number | undefined {
  try {
    const [, limit] = /^Max open files +(\d+)/m.exec(readFileSync('/proc/self/limits', 'utf8')) ?? []
    return limit === undefined ? undefined : Number(limit)
  } catch {
    return undefined // not Linux
  }
}
