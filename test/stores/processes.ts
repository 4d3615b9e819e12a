import { type ChildProcess, spawn, spawnSync } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { mkdtempSync, rmdirSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import type { Test } from 'tap'
import { eventually } from '../harness.js'
import { failOnWarnings } from '../warnings.js'

const script = fileURLToPath(new URL('./child.js', import.meta.url))
const living = new Set<ChildProcess>()
process.on('exit', () => {
  for (const child of living) child.kill('SIGKILL')
})

/** Another process that works on a store: see child.ts. */
export interface Child {
  /** What it has said so far. */
  readonly said: readonly unknown[]
  /** Resolves when it has said so many things; gives the last of them. */
  hears(count: number): Promise<unknown>
  /** Ends its standard input: what it waits for. */
  go(): void
  /** Resolves when it has ended by itself, with everything it said. @throws when it failed */
  ended(): Promise<readonly unknown[]>
}

/** Starts a command of child.ts, under another program if told so. */
export function startChild(t: Test, command: string, told: unknown, under: readonly string[] = []): Child {
  const words = [...under, process.execPath, script, command, JSON.stringify(told)]
  const child = spawn(words[0] ?? '', words.slice(1), {
    stdio: ['pipe', 'pipe', 'pipe'],
    // Work on files shall show as system calls (io_uring would hide it), in one order: that of one thread.
    env: { PATH: process.env.PATH, UV_USE_IO_URING: '0', UV_THREADPOOL_SIZE: under.length > 0 ? '1' : '4' },
  })
  living.add(child)
  let text = ''
  let complaints = ''
  const said: unknown[] = []
  child.stdout.setEncoding('utf8').on('data', (more: string) => {
    const lines = (text + more).split('\n')
    text = lines.pop() ?? ''
    said.push(...lines.map((line) => JSON.parse(line)))
  })
  child.stderr.setEncoding('utf8').on('data', (more: string) => {
    complaints += more
  })
  let how: string | undefined
  child.on('error', (error) => {
    how = String(error)
  })
  child.on('close', (code, signal) => {
    living.delete(child)
    failOnWarnings(complaints)
    how ??= code === 0 ? 'well' : `${signal ?? `code ${code}`}: ${complaints}`
  })
  t.teardown(() => {
    child.kill('SIGKILL')
  })
  return {
    said,
    async hears(count) {
      await eventually(
        `${command} to say ${count} things`,
        () => said.length >= count || how !== undefined,
        60_000,
      )
      if (said.length < count) throw new Error(`${command} ended early, ${how}`)
      return said[count - 1]
    },
    go() {
      child.stdin.end()
    },
    async ended() {
      const end = await eventually(`${command} to end`, () => how, 60_000)
      if (end !== 'well') throw new Error(`${command} failed, ${end}`)
      return said
    },
  }
}

/** Why no small disk can be mounted here; undefined when one can. */
export function noMounting(): string | undefined {
  if (process.platform !== 'linux' || process.getuid?.() !== 0) return 'only root can mount a small disk'
  const { folder, fault } = mountMemory(1)
  if (fault === undefined) unmount(folder)
  return fault
}

/**
 * Mounts a small filesystem of memory until the test ends; gives its folder. It lies apart from the test's own
 * folder: a mount that is left behind by a test that was killed would keep that one from being removed.
 */
export function mountSmallDisk(t: Test, mebibytes: number): string {
  const { folder, fault } = mountMemory(mebibytes)
  if (fault !== undefined) throw new Error(fault)
  t.teardown(() => unmount(folder))
  return folder
}

/** Makes a file that takes all the room of its disk, to the last byte. */
export function fillUp(path: string): void {
  for (let bytes = 1024 * 1024; bytes >= 1; bytes = Math.floor(bytes / 2)) {
    const piece = randomBytes(bytes) // zeros would take no room where the filesystem compresses
    try {
      for (;;) writeFileSync(path, piece, { flag: 'a' })
    } catch (error) {
      if (!(error instanceof Error && 'code' in error && error.code === 'ENOSPC')) throw error
    }
  }
}

function mountMemory(mebibytes: number): { folder: string; fault: string | undefined } {
  const folder = mkdtempSync(join(tmpdir(), 'boathouse-disk-'))
  const words = ['-t', 'tmpfs', '-o', `size=${mebibytes}m`, 'tmpfs', folder]
  const { status, stderr, error } = spawnSync('mount', words, { encoding: 'utf8' })
  if (status === 0) return { folder, fault: undefined }
  rmdirSync(folder)
  return { folder, fault: `a small disk cannot be mounted here: ${error ?? stderr.split('\n')[0]}` }
}

/** At once, even while a file is open on it. */
function unmount(folder: string): void {
  spawnSync('umount', ['--lazy', folder])
  rmdirSync(folder)
}

/** Why system calls cannot be traced here; undefined when they can. */
export function noTracing(): string | undefined {
  const probe = spawnSync('strace', ['-f', '-o', '/dev/null', 'true'], { encoding: 'utf8' })
  if (probe.error !== undefined) return 'strace is not installed'
  return probe.status === 0 ? undefined : `strace cannot trace here: ${probe.stderr.split('\n')[0]}`
}
