import { execFileSync } from 'node:child_process'
import {
  closeSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  rmSync,
  statfsSync,
  truncateSync,
  writeSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'

/** Disks that are small: by their bytes in memory, by their files, and with a filesystem of their own. */
export const diskKinds = ['tmpfs', 'inodes', 'ext4'] as const
export type DiskKind = (typeof diskKinds)[number]

const mebibyte = 1024 * 1024

/** Why there can be no small disks here; undefined when there can. */
export function noSmallDisks(): string | undefined {
  if (process.platform !== 'linux') return 'it needs Linux'
  if (process.getuid?.() !== 0) return 'it needs root, to mount a filesystem'
  for (const kind of diskKinds) {
    try {
      new SmallDisk(kind).remove()
    } catch {
      return `this system cannot mount ${kind}`
    }
  }
  return undefined
}

/** A disk that somebody else fills. */
export class SmallDisk {
  readonly #folder: string
  /** Where it is mounted. */
  readonly root: string
  #isMounted = false
  readonly #onExit = () => this.remove()

  /** @throws when it cannot be made or mounted */
  constructor(kind: DiskKind) {
    this.#folder = mkdtempSync(join(tmpdir(), 'boathouse-full-'))
    this.root = join(this.#folder, 'root')
    mkdirSync(this.root)
    if (kind === 'ext4') this.#mountExt4()
    else
      run(
        'mount',
        '-t',
        'tmpfs',
        '-o',
        kind === 'tmpfs' ? 'size=32m' : 'size=96m,nr_inodes=1500',
        'x',
        this.root,
      )
    this.#isMounted = true
    mkdirSync(this.#filler)
    process.once('exit', this.#onExit)
  }

  #mountExt4(): void {
    const image = join(this.#folder, 'image')
    closeSync(openSync(image, 'w'))
    truncateSync(image, 40 * mebibyte)
    run('mkfs.ext4', '-qF', '-m', '0', image)
    run('mount', '-o', 'loop', image, this.root)
  }

  get #filler(): string {
    return join(this.root, 'filler')
  }

  /** Fills it until so many bytes are left, as exactly as its blocks allow. */
  fillBytes(left: number): void {
    const file = openSync(join(this.#filler, 'bytes'), 'a')
    try {
      for (const piece of [Buffer.alloc(256 * 1024), Buffer.alloc(4096), Buffer.alloc(512)]) {
        while (this.freeBytes() - left >= piece.length) writeSync(file, piece)
      }
    } catch {
      // full to the last byte
    } finally {
      closeSync(file)
    }
  }

  /** Makes files until so many are left. */
  fillFiles(left: number): void {
    try {
      for (let at = 0; statfsSync(this.root).ffree > left; at++) {
        closeSync(openSync(join(this.#filler, `file-${at}`), 'a'))
      }
    } catch {
      // no file is left
    }
  }

  freeBytes(): number {
    const { bavail, bsize } = statfsSync(this.root)
    return bavail * bsize
  }

  /** Gives all of it back. */
  empty(): void {
    rmSync(this.#filler, { recursive: true, force: true })
    mkdirSync(this.#filler)
  }

  remove(): void {
    if (this.#isMounted) run('umount', '-l', this.root)
    this.#isMounted = false
    process.off('exit', this.#onExit)
    rmSync(this.#folder, { recursive: true, force: true })
  }
}

function run(command: string, ...args: readonly string[]): void {
  execFileSync(command, args, { stdio: 'ignore' })
}
