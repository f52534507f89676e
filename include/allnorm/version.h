/** @file
 * The version of these headers, for C and C++. allnorm_version() of allnorm/allnorm.h is that of the library that runs. */
#ifndef ALLNORM_VERSION_H
#define ALLNORM_VERSION_H

/** As text, "MAJOR.MINOR.PATCH". */
#define ALLNORM_VERSION "0.1.0"
/** Before 1 a minor version may change the interface. */
#define ALLNORM_VERSION_MAJOR 0
/** Counts what is added. */
#define ALLNORM_VERSION_MINOR 1
/** Counts what is mended. */
#define ALLNORM_VERSION_PATCH 0

#endif
