import { execFileSync } from 'node:child_process'
import { existsSync, mkdirSync, mkdtempSync, rmSync, truncateSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'

/** Filesystems that know how to be shut down as if the power had gone. */
export const filesystems = ['ext4', 'xfs', 'btrfs'] as const
export type Filesystem = (typeof filesystems)[number]

/** Bytes of the disk; the file that stands for it is sparse. */
const diskSize = 4 * 1024 ** 3

/** Tries to unmount while something still uses it, and milliseconds between them. */
const mostUnmounts = 50
const unmountPause = 100

/** The file must lie in memory: what was never synced must not get a second chance below the filesystem. */
const memory = '/dev/shm'

/** FS_IOC_SHUTDOWN with FS_SHUTDOWN_FLAGS_NOLOGFLUSH: neither the log nor any data is written from now on. */
const shutdown = `
import fcntl, os, struct, sys
folder = os.open(sys.argv[1], os.O_RDONLY)
fcntl.ioctl(folder, 0x8004587D, struct.pack('I', 2))
`

/** Why power cannot be cut here; undefined when it can. */
export function noPowerCuts(filesystem: Filesystem): string | undefined {
  if (process.platform !== 'linux') return 'it needs Linux'
  if (process.getuid?.() !== 0) return 'it needs root, to mount a filesystem'
  if (!existsSync(memory)) return `it needs ${memory}`
  for (const tool of [`mkfs.${filesystem}`, 'losetup', 'mount', 'umount', 'python3']) {
    try {
      execFileSync('sh', ['-c', `command -v ${tool}`], { stdio: 'ignore' })
    } catch {
      return `it needs ${tool}`
    }
  }
  const disk = new Disk(filesystem)
  try {
    disk.cutPower()
    disk.restore()
    return undefined
  } catch {
    return `this kernel cannot cut the power of ${filesystem}`
  } finally {
    disk.remove()
  }
}

/** A disk in memory with a filesystem of its own, whose power can be cut. */
export class Disk {
  readonly #image: string
  readonly #filesystem: Filesystem
  readonly #folder: string
  /** Where it is mounted. */
  readonly root: string
  #isMounted = false
  #device = ''

  /** @throws when it cannot be made or mounted */
  constructor(filesystem: Filesystem) {
    this.#filesystem = filesystem
    this.#folder = mkdtempSync(join(memory, 'boathouse-disk-'))
    this.#image = join(this.#folder, 'image')
    this.root = join(this.#folder, 'root')
    mkdirSync(this.root)
    writeFileSync(this.#image, '')
    truncateSync(this.#image, diskSize)
    run(
      `mkfs.${filesystem}`,
      filesystem === 'ext4' ? '-qF' : filesystem === 'xfs' ? '-qf' : '-q',
      this.#image,
    )
    this.#mount()
    process.once('exit', () => this.remove())
  }

  /** Nothing is written any more, and reads of what is not in memory fail. Processes that use it must be stopped. */
  cutPower(): void {
    run('python3', '-c', shutdown, this.root)
  }

  /** The power is back: the filesystem recovers. No process may use it. */
  restore(): void {
    this.#unmount()
    this.#mount()
  }

  /** On a new device each time: somebody else's mount namespace may hold on to the filesystem of the last one. */
  #mount(): void {
    const made = execFileSync('losetup', ['--find', '--show', this.#image], { encoding: 'utf8' })
    this.#device = made.trim()
    // XFS would refuse the same filesystem twice, and whoever holds on to the last one has its copy of it.
    const options = this.#filesystem === 'xfs' ? ['-o', 'nouuid'] : []
    run('mount', ...options, this.#device, this.root)
    this.#isMounted = true
  }

  /** The kernel lets go of the files of a process a moment after the process has gone. */
  #unmount(...how: readonly string[]): void {
    for (let tries = 1; ; tries++) {
      try {
        run('umount', ...how, this.root)
        break
      } catch (error) {
        if (tries === mostUnmounts) throw error
        Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, unmountPause)
      }
    }
    run('losetup', '--detach', this.#device)
    this.#isMounted = false
  }

  remove(): void {
    if (this.#isMounted) this.#unmount('-l')
    rmSync(this.#folder, { recursive: true, force: true })
  }
}

function run(command: string, ...args: readonly string[]): void {
  execFileSync(command, args, { stdio: 'ignore' })
}
