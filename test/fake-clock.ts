import { execFileSync } from 'node:child_process'
import { existsSync } from 'node:fs'
import { join } from 'node:path'

/** The library by which a program's clock can be moved while it runs; undefined where it is not installed. */
export function fakeClock(): string | undefined {
  const triplet = spawnText('dpkg-architecture', '-qDEB_HOST_MULTIARCH') ?? `${machine()}-linux-gnu`
  return [
    `/usr/lib/${triplet}/faketime`,
    '/usr/lib/faketime',
    '/usr/lib64/faketime',
    '/usr/local/lib/faketime',
  ]
    .map((folder) => join(folder, 'libfaketimeMT.so.1'))
    .find((path) => existsSync(path))
}

function machine(): string {
  return process.arch === 'arm64' ? 'aarch64' : 'x86_64'
}

function spawnText(program: string, ...args: string[]): string | undefined {
  try {
    return execFileSync(program, args, { encoding: 'utf8', stdio: 'pipe' }).trim()
  } catch {
    return undefined
  }
}
