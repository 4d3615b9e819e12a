import { sep } from 'node:path'
import { errorCode } from '../../storage/errors.js'

/** What the system says of a folder that cannot be used, in words that follow its name. */
const reasons: Readonly<Record<string, string>> = {
  EACCES: 'this user may not use it',
  EPERM: 'this user may not use it',
  EROFS: 'its disk can only be read',
  EEXIST: 'there is something else of that name',
  ENOTDIR: 'a part of its path is not a folder',
  ENOENT: 'a part of its path leads nowhere',
  ELOOP: 'its path goes round in circles',
  ENAMETOOLONG: 'its path is too long',
  EBUSY: 'something else has it',
  EINVAL: 'this is no path of a folder',
  ENODEV: 'its disk is not there',
  EIO: 'its disk fails',
  ESTALE: 'its disk has gone away',
}

/**
 * Why a folder cannot be used, in a sentence.
 * @param folder its path
 * @param what its kind, such as `data folder`
 * @param advice what to do, such as `name another one with --data`
 * @returns undefined when the error is not about this folder
 */
export function describeFolderFailure(
  error: unknown,
  { folder, what, advice }: { readonly folder: string; readonly what: string; readonly advice: string },
): string | undefined {
  if (!(error instanceof Error && 'syscall' in error)) return undefined
  const code = errorCode(error)
  const reason = Object.hasOwn(reasons, code) ? reasons[code] : undefined
  const path = 'path' in error && typeof error.path === 'string' ? error.path : folder
  if (reason === undefined || !(isWithin(path, folder) || isWithin(folder, path))) return undefined
  const where = path === folder ? code : `${code}: ${path}`
  return `The ${what} ${folder} cannot be used, ${reason} (${where}): ${advice}.`
}

function isWithin(path: string, folder: string): boolean {
  return path === folder || path.startsWith(folder.endsWith(sep) ? folder : `${folder}${sep}`)
}

/** As {@link describeFolderFailure}, for the data folder. */
export function describeDataFailure(error: unknown, folder: string): string | undefined {
  const advice = 'name another folder with --data or the setting data, or run this as the user whose it is'
  return describeFolderFailure(error, { folder, what: 'data folder', advice })
}
